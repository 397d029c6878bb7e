"""boto3 against the EC2 endpoint of a service: see ec2-clients, which runs this."""

import ast
import contextlib
import io
import os
import re
import sys
import urllib.error
import urllib.request
from xml.etree import ElementTree

# The example of EC2's documentation of start_instances, word for word, and its output.
EXAMPLE = """\
response = client.start_instances(
    InstanceIds=[
        'i-1234567890abcdef0',
    ],
)

print(response)
"""
EXPECTED = {
    'StartingInstances': [
        {
            'CurrentState': {
                'Code': 0,
                'Name': 'pending',
            },
            'InstanceId': 'i-1234567890abcdef0',
            'PreviousState': {
                'Code': 80,
                'Name': 'stopped',
            },
        },
    ],
}


def check(what, got, want):
    if got != want:
        sys.exit(f'{what}\ngot  {got!r}\nwant {want!r}')


def refusal(call, **arguments):
    """Returns code, text and status of a call that has to be refused."""
    from botocore.exceptions import ClientError
    try:
        call(**arguments)
    except ClientError as e:
        return e.response['Error']['Code'], e.response['Error']['Message'], e.response['ResponseMetadata']['HTTPStatusCode']
    sys.exit(f'{call} was not refused')


def check_against_model(http_response, model, **_):
    """Checks that a reply has no element that EC2's own model does not have, and none in another form."""
    if http_response.status_code != 200:
        return
    root = ElementTree.fromstring(http_response.content)
    check('the root of a reply', root.tag, '{http://ec2.amazonaws.com/doc/2016-11-15/}' + model.name + 'Response')

    def compare(path, element, shape):
        children = [(c, c.tag.split('}')[1]) for c in element]
        if shape.type_name == 'structure':
            members = {m.serialization.get('name', n): m for n, m in shape.members.items()}
            for child, name in children:
                if name not in members:
                    sys.exit(f'{path}: EC2 has no {name} there')
                compare(f'{path}.{name}', child, members[name])
            names = [name for _, name in children]
            check(f'{path}: elements that come twice', len(names), len(set(names)))
        elif shape.type_name == 'list':
            for child, name in children:
                check(f'{path}: an element of a list', name, shape.member.serialization.get('name', 'member'))
                compare(path, child, shape.member)
        else:
            check(f'{path}: elements below a value', children, [])
            forms = {'boolean': 'true|false', 'integer': r'\d+', 'timestamp': r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z'}
            form = forms.get(shape.type_name, '.*')
            check(f'{path}: whether {element.text!r} is a {shape.type_name}', bool(re.fullmatch(form, element.text or '')), True)
            if getattr(shape, 'enum', None):
                check(f'{path}: whether EC2 knows the value {element.text!r}', element.text in shape.enum, True)

    for child in root:
        name = child.tag.split('}')[1]
        if name == 'requestId' or name == 'return' and model.output_shape is None:
            continue
        members = {m.serialization.get('name', n): m for n, m in model.output_shape.members.items()}
        if name not in members:
            sys.exit(f'{model.name}: EC2 has no {name} there')
        compare(f'{model.name}.{name}', child, members[name])
    seen.add(model.name)


seen = set()


def try_boto3(endpoint):
    import boto3
    import botocore
    print('=== boto3', boto3.__version__)
    if tuple(int(n) for n in botocore.__version__.split('.')[:2]) >= (1, 31):
        os.environ['AWS_ENDPOINT_URL_EC2'] = endpoint
        client = boto3.client('ec2')
    else:
        print(f'\n*** AWS_ENDPOINT_URL_EC2 IS NOT TRIED: botocore {botocore.__version__} is too old to know it\n', file=sys.stderr)
        client = boto3.client('ec2', endpoint_url=endpoint)

    modelled = tuple(int(n) for n in botocore.__version__.split('.')[:2]) >= (1, 36)
    if modelled:
        client.meta.events.register('after-call.ec2', check_against_model)
    else:
        print(f'\n*** THE REPLIES ARE NOT COMPARED WITH THE MODEL: that of botocore {botocore.__version__} is too old\n', file=sys.stderr)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(EXAMPLE, {'client': client})
    response = ast.literal_eval(printed.getvalue())
    metadata = response.pop('ResponseMetadata')
    check('the example of the documentation', response, EXPECTED)
    check('its status', metadata['HTTPStatusCode'], 200)
    check('the form of its request id', bool(re.fullmatch(r'[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}', metadata['RequestId'])), True)

    ids = ['i-1234567890abcdef0', 'i-0a000000000000011']
    soon = {'Delay': 1, 'MaxAttempts': 60}
    client.start_instances(InstanceIds=ids)
    client.get_waiter('instance_running').wait(InstanceIds=ids, WaiterConfig=soon)
    client.get_waiter('instance_status_ok').wait(InstanceIds=ids, WaiterConfig=soon)
    client.get_waiter('system_status_ok').wait(InstanceIds=ids, WaiterConfig=soon)
    client.stop_instances(InstanceIds=ids)
    client.get_waiter('instance_stopped').wait(InstanceIds=ids, WaiterConfig=soon)
    client.terminate_instances(InstanceIds=ids)
    client.get_waiter('instance_terminated').wait(InstanceIds=ids, WaiterConfig=soon)

    launched = client.run_instances(
        ImageId='ami-1', InstanceType='t3.nano', MinCount=12, MaxCount=12, ClientToken='once', KeyName='mine',
        TagSpecifications=[{'ResourceType': 'instance', 'Tags': [{'Key': 'team', 'Value': '<red & blue>'}]}])
    mine = [i['InstanceId'] for i in launched['Instances']]
    client.get_waiter('instance_exists').wait(InstanceIds=mine, WaiterConfig=soon)
    pages = client.get_paginator('describe_instances').paginate(
        Filters=[{'Name': 'tag:team', 'Values': ['<red*']}], PaginationConfig={'PageSize': 5})
    found = [i['InstanceId'] for page in pages for r in page['Reservations'] for i in r['Instances']]
    check('the instances of all pages', sorted(found), sorted(mine))
    client.get_waiter('instance_running').wait(InstanceIds=mine, WaiterConfig=soon)

    client.create_tags(Resources=mine[:1], Tags=[{'Key': 'a', 'Value': ''}])
    check('a tag', [t['Value'] for t in client.describe_tags(Filters=[{'Name': 'key', 'Values': ['a']}])['Tags']], [''])
    client.delete_tags(Resources=mine[:1], Tags=[{'Key': 'a'}])
    client.reboot_instances(InstanceIds=mine)
    client.modify_instance_attribute(InstanceId=mine[1], DisableApiStop={'Value': True})
    for attribute in 'disableApiStop', 'disableApiTermination', 'instanceType':
        client.describe_instance_attribute(InstanceId=mine[1], Attribute=attribute)
    client.describe_instances()
    client.describe_instance_status(IncludeAllInstances=True)
    check('the actions whose replies are as EC2 models them', sorted(seen), [] if not modelled else [
        'CreateTags', 'DeleteTags', 'DescribeInstanceAttribute', 'DescribeInstanceStatus', 'DescribeInstances', 'DescribeTags',
        'ModifyInstanceAttribute', 'RebootInstances', 'RunInstances', 'StartInstances', 'StopInstances', 'TerminateInstances'])

    # boto3's resources do the same through other calls.
    resource = boto3.resource('ec2', endpoint_url=endpoint).Instance(mine[0])
    check('a type', resource.instance_type, 't3.nano')
    check('a tag', resource.tags, [{'Key': 'team', 'Value': '<red & blue>'}])
    resource.modify_attribute(DisableApiTermination={'Value': True})
    check('an attribute', resource.describe_attribute(Attribute='disableApiTermination')['DisableApiTermination'], {'Value': True})
    check('a protection', refusal(resource.terminate)[0], 'OperationNotPermitted')

    check('an unknown id', refusal(client.start_instances, InstanceIds=['i-0ffffffffffffffff']),
          ('InvalidInstanceID.NotFound', "The instance ID 'i-0ffffffffffffffff' does not exist", 400))
    check('a state', refusal(client.start_instances, InstanceIds=['i-1234567890abcdef0']),
          ('IncorrectInstanceState', "The instance 'i-1234567890abcdef0' is not in a state from which it can be started.", 400))
    check('a dry run', refusal(client.start_instances, InstanceIds=['i-0a000000000000012'], DryRun=True),
          ('DryRunOperation', 'Request would have succeeded, but DryRun flag is set.', 412))
    check('an action of EC2 that is none here', refusal(client.describe_vpcs),
          ('InvalidAction', 'The action DescribeVpcs is not valid for this web service.', 400))
    print('boto3: all as it should be')


def try_signatures(endpoint):
    import boto3
    def client(key, secret):
        return boto3.client('ec2', endpoint_url=endpoint, aws_access_key_id=key, aws_secret_access_key=secret)
    known = client('AKIAIOSFODNN7EXAMPLE', 'wJalrXUtnFEMI/K7MDENG')
    known.reboot_instances(InstanceIds=['i-0a000000000000001'])
    url = known.generate_presigned_url('describe_instances', ExpiresIn=60, HttpMethod='GET')
    with urllib.request.urlopen(url) as answer:
        check('a presigned URL', b'<DescribeInstancesResponse' in answer.read(), True)
    try:
        urllib.request.urlopen(url.replace('Action=DescribeInstances', 'Action=DescribeInstanceStatus'))
        sys.exit('a presigned URL that was changed is accepted')
    except urllib.error.HTTPError as e:
        check('a presigned URL that was changed', (e.code, b'SignatureDoesNotMatch' in e.read()), (403, True))
    check('a wrong secret', refusal(client('AKIAIOSFODNN7EXAMPLE', 'wrong').describe_instances)[::2], ('SignatureDoesNotMatch', 403))
    check('an unknown key', refusal(client('AKIANOBODY', 'wrong').describe_instances),
          ('AuthFailure', 'AWS was not able to validate the provided access credentials', 401))
    print('signatures of boto3: all as they should be')


def new_enough(version):
    """Whether an AWS CLI knows AWS_ENDPOINT_URL_EC2: aws-cli/1.45.11 Python/3.11.7 …"""
    numbers = tuple(int(n) for n in re.match(r'aws-cli/(\d+)\.(\d+)', version).groups())
    sys.exit(not (numbers >= (2, 13) or (1, 29) <= numbers < (2, 0)))


{'boto3': try_boto3, 'signatures': try_signatures, 'new-enough': new_enough}[sys.argv[1]](sys.argv[2])
