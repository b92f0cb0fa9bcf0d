"""One event of each service as AWS documents it, under its name in docs/events.md.

Sources: "Using AWS Lambda with …" of each service in the Lambda Developer Guide, "Lambda functions
as targets in VPC Lattice", "Lambda@Edge event structure", "Customizing user pool workflows with
Lambda triggers", "Creating AWS Config custom Lambda rules", AppSync's resolver context reference.
"""

from collections.abc import Callable
from typing import Any

from tests import events

REGION, ACCOUNT = "eu-central-1", "123456789012"


def arn(service: str, resource: str) -> str:
    return f"arn:aws:{service}:{REGION}:{ACCOUNT}:{resource}"


def eventbridge(source: str, detail_type: str) -> dict[str, Any]:
    return {
        "version": "0",
        "id": "53dc4d37-cffa-4f76-80c9-8b7d4a4d2eaa",
        "detail-type": detail_type,
        "source": source,
        "account": ACCOUNT,
        "time": "2026-11-26T12:00:00Z",
        "region": REGION,
        "resources": [arn("events", "rule/my-rule")],
        "detail": {},
    }


LATTICE_1 = {
    "raw_path": "/orders/1",
    "method": "GET",
    "headers": {"host": "svc.example.com", "accept": "*/*"},
    "query_string_parameters": {},
    "body": None,
    "is_base64_encoded": False,
}
LATTICE_2 = {
    "version": "2.0",
    "path": "/orders/1",
    "method": "GET",
    "headers": {"host": ["svc.example.com"], "accept": ["*/*"]},
    "queryStringParameters": {},
    "requestContext": {
        "serviceNetworkArn": arn("vpc-lattice", "servicenetwork/sn-1"),
        "serviceArn": arn("vpc-lattice", "service/svc-1"),
        "targetGroupArn": arn("vpc-lattice", "targetgroup/tg-1"),
        "identity": {"sourceVpcArn": arn("ec2", "vpc/vpc-1"), "type": "AWS_IAM"},
        "region": REGION,
        "timeEpoch": "1795694400000000",
    },
}
WEBSOCKET = {
    "headers": {"Host": "abc123.execute-api.eu-central-1.amazonaws.com", "Upgrade": "websocket"},
    "multiValueHeaders": {"Host": ["abc123.execute-api.eu-central-1.amazonaws.com"]},
    "requestContext": {
        "routeKey": "$connect",
        "eventType": "CONNECT",
        "extendedRequestId": "x",
        "requestTime": "26/Nov/2026:12:00:00 +0000",
        "messageDirection": "IN",
        "stage": "prod",
        "connectedAt": 1795694400000,
        "requestTimeEpoch": 1795694400000,
        "identity": {"sourceIp": "203.0.113.7"},
        "requestId": "x",
        "domainName": "abc123.execute-api.eu-central-1.amazonaws.com",
        "connectionId": "x=",
        "apiId": "abc123",
    },
    "isBase64Encoded": False,
}
AUTHORIZER = events.rest_api("GET", "/orders/1") | {
    "type": "REQUEST",
    "methodArn": arn("execute-api", "abc123/prod/GET/orders/1"),
}
APPSYNC = {
    "arguments": {"id": "1"},
    "identity": None,
    "source": None,
    "request": {
        "headers": {"host": "x.appsync-api.eu-central-1.amazonaws.com"},
        "domainName": None,
    },
    "prev": None,
    "info": {"fieldName": "getOrder", "parentTypeName": "Query", "variables": {}},
    "stash": {},
}
LAMBDA_AT_EDGE = {
    "Records": [
        {
            "cf": {
                "config": {
                    "distributionDomainName": "d1.cloudfront.net",
                    "eventType": "viewer-request",
                },
                "request": {
                    "clientIp": "203.0.113.7",
                    "headers": {"host": [{"key": "Host", "value": "d1.cloudfront.net"}]},
                    "method": "GET",
                    "querystring": "",
                    "uri": "/orders/1",
                },
            }
        }
    ]
}
SQS = {
    "Records": [
        {
            "messageId": "1",
            "receiptHandle": "r",
            "body": "secret",
            "attributes": {"ApproximateReceiveCount": "1"},
            "messageAttributes": {},
            "md5OfBody": "x",
            "eventSource": "aws:sqs",
            "eventSourceARN": arn("sqs", "q"),
            "awsRegion": REGION,
        }
    ]
}
SNS = {
    "Records": [
        {
            "EventVersion": "1.0",
            "EventSubscriptionArn": arn("sns", "t:1"),
            "EventSource": "aws:sns",
            "Sns": {"Type": "Notification", "MessageId": "1", "Message": "secret"},
        }
    ]
}
S3 = {
    "Records": [
        {
            "eventVersion": "2.1",
            "eventSource": "aws:s3",
            "awsRegion": REGION,
            "eventName": "ObjectCreated:Put",
            "s3": {"bucket": {"name": "b"}, "object": {"key": "secret"}},
        }
    ]
}
KINESIS = {
    "Records": [
        {
            "kinesis": {"partitionKey": "1", "sequenceNumber": "1", "data": "c2VjcmV0"},
            "eventSource": "aws:kinesis",
            "eventVersion": "1.0",
            "eventID": "shardId-000000000006:1",
            "eventName": "aws:kinesis:record",
            "invokeIdentityArn": arn("iam", "role/r"),
            "awsRegion": REGION,
            "eventSourceARN": arn("kinesis", "stream/s"),
        }
    ]
}
DYNAMODB = {
    "Records": [
        {
            "eventID": "1",
            "eventName": "INSERT",
            "eventVersion": "1.1",
            "eventSource": "aws:dynamodb",
            "awsRegion": REGION,
            "dynamodb": {"Keys": {"Id": {"S": "secret"}}, "SequenceNumber": "1"},
            "eventSourceARN": arn("dynamodb", "table/t/stream/1"),
        }
    ]
}
CONFIG = {
    "version": "1.0",
    "invokingEvent": '{"messageType": "ScheduledNotification"}',
    "ruleParameters": "{}",
    "resultToken": "secret",
    "eventLeftScope": False,
    "executionRoleArn": arn("iam", "role/r"),
    "configRuleArn": arn("config", "config-rule/config-rule-1"),
    "configRuleName": "rule",
    "configRuleId": "config-rule-1",
    "accountId": ACCOUNT,
}
COGNITO = {
    "version": "1",
    "triggerSource": "PreSignUp_SignUp",
    "region": REGION,
    "userPoolId": "eu-central-1_x",
    "userName": "secret",
    "callerContext": {"awsSdkVersion": "1", "clientId": "x"},
    "request": {"userAttributes": {"email": "secret"}},
    "response": {"autoConfirmUser": False},
}
DESTINATION = {
    "version": "1.0",
    "timestamp": "2026-11-26T12:00:00.000Z",
    "requestContext": {
        "requestId": "1",
        "functionArn": arn("lambda", "function:f:$LATEST"),
        "condition": "RetriesExhausted",
        "approximateInvokeCount": 3,
    },
    "requestPayload": {"secret": True},
    "responseContext": {"statusCode": 200, "executedVersion": "$LATEST", "functionError": "x"},
    "responsePayload": {"errorMessage": "secret"},
}


def with_context(build: Callable[..., dict[str, Any]], **context: Any) -> dict[str, Any]:
    event = build("GET", "/orders/1")
    event["requestContext"] |= context
    return event


EVENTS: dict[str, Any] = {
    "REST API": events.rest_api("GET", "/orders/1"),
    "HTTP API, payload 1.0": events.http_api_1_0("GET", "/orders/1"),
    "HTTP API, payload 2.0": events.http_api_on_a_stage("GET", "/orders/1"),
    "Function URL": events.function_url("GET", "/orders/1"),
    "Application Load Balancer": events.load_balancer("GET", "/orders/1"),
    "Application Load Balancer, multi-value headers": events.load_balancer_multi_value(
        "GET", "/orders/1"
    ),
    "EventBridge schedule": eventbridge("aws.events", "Scheduled Event"),
    'EventBridge Scheduler, input `{"source": "aws.scheduler"}`': {"source": "aws.scheduler"},
    "VPC Lattice, version 1": LATTICE_1,
    "VPC Lattice, version 2": LATTICE_2,
    "API Gateway WebSocket": WEBSOCKET,
    "An HTTP event with a part missing, or with a body that is marked as base64 and is not": {
        **events.http_api("POST", "/orders"),
        "isBase64Encoded": True,
        "body": "secret!",
    },
    "API Gateway authorizer": AUTHORIZER,
    "AppSync": APPSYNC,
    "Lambda@Edge": LAMBDA_AT_EDGE,
    "SQS": SQS,
    "SNS": SNS,
    "S3": S3,
    "Kinesis": KINESIS,
    "DynamoDB stream": DYNAMODB,
    "EventBridge, an event of an AWS service": eventbridge("aws.s3", "Object Created"),
    "EventBridge, an event of your own": eventbridge("com.example.secret", "secret"),
    "EventBridge Scheduler, any other input": {"ping": "secret"},
    "CloudWatch Logs": {"awslogs": {"data": "secret"}},
    "Config rule": CONFIG,
    "Cognito trigger": COGNITO,
    "Lambda destination": DESTINATION,
    "The console's test event": {"key1": "secret", "key2": "value2", "key3": "value3"},
    "`null`": None,
    "A list": [{"secret": "secret"}],
}
