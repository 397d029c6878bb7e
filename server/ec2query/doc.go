// Package ec2query is a second door to the service layer, beside the gRPC one: it
// speaks EC2's Query protocol, so that the AWS CLI, boto3, Terraform and every AWS SDK
// can call it unmodified. It decodes, calls the service layer, and encodes; it decides
// nothing about instances, and passes nothing on to AWS.
//
// A request goes through the steps of http.go in their order: who may come in, what was
// sent, who it is, which action. Handlers return plain errors; errors.go is the only
// place that names a status of HTTP.
package ec2query
