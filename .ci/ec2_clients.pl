# Clients of older versions against the EC2 endpoint of a service: see ec2-clients, which runs this with the name of one
# and the endpoint.
use strict;
use warnings;

my ( $client, $endpoint ) = @ARGV;

sub check {
    my ( $what, $got, $want ) = @_;
    die "$client: $what: got $got, want $want\n" if $got ne $want;
}

if ( $client eq 'Net::Amazon::EC2' ) {
    require Net::Amazon::EC2;
    for my $signature ( 2, 4 ) {
        my $ec2 = Net::Amazon::EC2->new(
            AWSAccessKeyId => 'ana', SecretAccessKey => 'any', base_url => $endpoint, ssl => 0,
            region => 'us-east-1', signature_version => $signature,
        );
        my $found = $ec2->describe_instances( InstanceId => ['i-1234567890abcdef0'] );
        my $instance = $found->[0]->instances_set->[0];
        check( 'the image', $instance->image_id, 'ami-0abcdef1234567890' );
        check( 'the launch index', $instance->ami_launch_index, 0 );
        my $rebooted = $ec2->reboot_instances( InstanceId => ['i-0a000000000000001'] );
        check( 'a reboot', $rebooted, 1 );
    }
}
elsif ( $client eq 'VM::EC2' ) {
    require VM::EC2;
    VM::EC2->import(":standard");
    my $ec2 = VM::EC2->new( -access_key => 'ana', -secret_key => 'any', -endpoint => $endpoint, -raise_error => 1 );
    my ($instance) = $ec2->describe_instances('i-1234567890abcdef0');
    check( 'the image', $instance->imageId, 'ami-0abcdef1234567890' );
    my ($change) = $ec2->stop_instances('i-0a000000000000002');
    check( 'a stop', $change->currentState, 'stopping' );
}
print "$client: all as it should be\n";
