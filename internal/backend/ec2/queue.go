package ec2

import "github.com/aws/aws-sdk-go-v2/service/sqs"

func newQueue(cfg Config) *sqs.Client { return sqs.NewFromConfig(cfg.AWS) }
