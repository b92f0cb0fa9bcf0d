"""Deployments from GitHub: permissions, the workflow and the plan shown on a pull request."""

import fnmatch
import re
import subprocess
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from infra.aws import deploy, plan, preflight, programs, stacks, template_file
from infra.aws.account import OperatorError
from infra.local import ROOT
from tests.infra import aws_double
from tests.infra.aws_double import REGION, LambdaSettings
from tests.infra.test_aws_preflight import account, docker

__all__ = ["account", "docker"]  # fixtures

ROLES = template_file.read("github/roles")["Resources"]
PARAMETERS = template_file.read("github/roles")["Parameters"]


def statements(role: str) -> list[dict[str, Any]]:
    properties = ROLES[role]["Properties"]
    documents = [policy["PolicyDocument"] for policy in properties["Policies"]]
    if {"Ref": "Look"} in properties.get("ManagedPolicyArns", []):
        documents.append(ROLES["Look"]["Properties"]["PolicyDocument"])
    return [statement for document in documents for statement in document["Statement"]]


def listed(value: Any) -> list[Any]:
    """Return an action or a resource, of which a statement may have several, as a list."""
    return value if isinstance(value, list) else [value]


def actions(role: str) -> set[str]:
    return {action for statement in statements(role) for action in listed(statement["Action"])}


def trust(role: str) -> tuple[str, dict[str, Any]]:
    [statement] = ROLES[role]["Properties"]["AssumeRolePolicyDocument"]["Statement"]
    return statement["Action"], statement["Condition"]


# --- Permissions ---------------------------------------------------------------------------------


def test_a_pull_request_has_read_only_access_without_secrets() -> None:
    needed = {"cloudformation:CreateChangeSet", "cloudformation:DescribeChangeSet"}
    assert needed <= actions("PlanRole")
    assert not {a for a in actions("PlanRole") if "*" in a}
    forbidden = re.compile(
        r"Execute|PassRole|ecr:Put|ecr:Upload|GetSecretValue|iam:|Create(?!Chan)"
    )
    assert not {a for a in actions("PlanRole") if forbidden.search(a)}


def test_pull_request_uploads_are_isolated_from_deployments() -> None:
    """SAM reuses an object that exists under the same digest."""

    def writable_keys(role: str) -> set[str]:
        return {
            resource["Fn::Sub"].split("/", 1)[1]
            for statement in statements(role)
            if statement["Action"] == "s3:PutObject"
            for resource in listed(statement["Resource"])
        }

    assert writable_keys("PlanRole") == {"${Stack}-plan/*"}
    assert writable_keys("DeployRole") == {"${Stack}/*", "${Stack}-registry/*"}
    assert plan.s3_prefix("shop") == "shop-plan"


def test_each_role_trusts_one_kind_of_run_of_one_repository() -> None:
    provider = "token.actions.githubusercontent.com"
    action, condition = trust("PlanRole")
    assert action == "sts:AssumeRoleWithWebIdentity"
    assert condition["StringEquals"] == {
        f"{provider}:aud": "sts.amazonaws.com",
        f"{provider}:sub": {"Fn::Sub": "repo:${Repository}:pull_request"},
    }
    action, condition = trust("DeployRole")
    assert action == "sts:AssumeRoleWithWebIdentity"
    assert condition["StringEquals"] == {f"{provider}:aud": "sts.amazonaws.com"}
    ref = {"Fn::Sub": "repo:${Repository}:ref:refs/tags/${Tags}"}
    assert condition["StringLike"] == {f"{provider}:sub": ref}
    nested = {"Fn::Sub": "repo:${Repository}:ref:refs/tags/*/*"}
    assert condition["StringNotLike"] == {f"{provider}:sub": nested}
    [statement] = ROLES["ExecutionRole"]["Properties"]["AssumeRolePolicyDocument"]["Statement"]
    assert statement["Principal"] == {"Service": "cloudformation.amazonaws.com"}


@pytest.mark.parametrize(
    ("repository", "is_allowed"),
    [
        ("octo/shop.api_2", True),
        ("octo@123/shop@456", True),
        ("octo/*", False),
        ("octo@*/shop@*", False),
        ("octo/sho?", False),
        ("octo/a:ref", False),
    ],
)
def test_a_repository_name_cannot_contain_a_wildcard(repository: str, is_allowed: bool) -> None:
    pattern = PARAMETERS["Repository"]["AllowedPattern"]
    assert bool(re.fullmatch(pattern, repository)) == is_allowed
    assert not re.fullmatch(PARAMETERS["Tags"]["AllowedPattern"], "release/v*")


def test_every_bucket_must_belong_to_the_account() -> None:
    """The end of the name of SAM's bucket is generated, and names are global."""
    buckets = [
        statement
        for role in ("PlanRole", "DeployRole", "ExecutionRole")
        for statement in statements(role)
        if "s3:" in str(statement["Action"])
    ]
    assert len(buckets) == 5  # the shared policy is in two roles
    same_account = {"StringEquals": {"aws:ResourceAccount": {"Ref": "AWS::AccountId"}}}
    assert all(statement["Condition"] == same_account for statement in buckets)


def test_the_deploy_role_only_passes_the_cloudformation_role() -> None:
    assert not {a for a in actions("DeployRole") if "*" in a}
    [passed] = [s for s in statements("DeployRole") if s["Action"] == "iam:PassRole"]
    assert passed["Resource"] == {"Fn::GetAtt": ["ExecutionRole", "Arn"]}
    assert not {a for a in actions("DeployRole") if re.match(r"(rds|ec2|ecs|lambda):C", a)}


def test_the_deploy_role_may_send_signed_verification_reads() -> None:
    assert template_file.read("template")["Parameters"]["Authorization"]["Default"] == "IAM"
    [invoke] = [s for s in statements("DeployRole") if s["Action"] == "execute-api:Invoke"]
    assert invoke["Resource"]["Fn::Sub"].endswith(":*/*/GET/*")  # API, stage, method, path


def test_cloudformation_may_create_everything_in_the_templates() -> None:
    """Checked by service, and in EC2 by resource kind; only AWS knows the actions each resource
    needs."""
    allowed = actions("ExecutionRole")
    services = {a.partition(":")[0] for a in allowed}
    called = {
        "ApiGatewayV2": "apigateway",
        "ElasticLoadBalancingV2": "elasticloadbalancing",
        "Serverless": "lambda",
    }
    kinds = set()
    for path in template_file.FOLDER.glob("*.yaml"):
        resources = template_file.read(path.stem)["Resources"].values()
        kinds |= {
            resource["Type"] for resource in resources if resource["Type"].startswith("AWS::")
        }
    for kind in kinds:
        service = kind.split("::")[1]
        assert called.get(service, service.lower()) in services, kind
        if service == "EC2":
            create = f"ec2:create{kind.split('::')[2]}s".lower()
            assert any(fnmatch.fnmatch(create, a.lower()) for a in allowed), kind


def test_cloudformation_has_the_permissions_of_the_private_zone() -> None:
    """The handlers' permissions in the schemas of AWS::Route53::HostedZone and RecordSet, except
    those for query logging configurations, comments and further VPCs, which no template uses."""
    called = {
        *("AssociateVPCWithHostedZone", "ChangeResourceRecordSets", "ChangeTagsForResource"),
        *("CreateHostedZone", "DeleteHostedZone", "GetChange", "GetHostedZone"),
        *("ListHostedZones", "ListQueryLoggingConfigs", "ListResourceRecordSets"),
        "ListTagsForResource",
    }
    assert {a for a in actions("ExecutionRole") if a.startswith("route53:")} == {
        f"route53:{action}" for action in called
    }


def test_cloudformation_has_the_permissions_of_ecs_iam_and_rds_handlers() -> None:
    """Those in the schemas of AWS::ECS::Service, AWS::IAM::ManagedPolicy, AWS::RDS::DBInstance and
    AWS::RDS::DBParameterGroup that a wildcard for the stack's own resources does not cover."""
    resources = {
        action: str(statement["Resource"])
        for statement in statements("ExecutionRole")
        for action in listed(statement["Action"])
    }
    assert "service-deployment/${Stack}-*" in resources["ecs:*"]
    assert "iam:ListEntitiesForPolicy" in resources
    for name in (
        *("DBClusters", "DBEngineVersions", "DBInstanceAutomatedBackups", "Events"),
        "EngineDefaultParameters",
    ):
        assert resources[f"rds:Describe{name}"] == "*"


def test_the_deploy_role_may_push_an_image() -> None:
    """Those of "IAM permissions for pushing an image" (Amazon ECR User Guide), and
    `ecr:BatchGetImage` for the HEAD request of `docker push`.
    """
    assert {
        *("ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:CompleteLayerUpload"),
        *("ecr:GetAuthorizationToken", "ecr:InitiateLayerUpload", "ecr:PutImage"),
        "ecr:UploadLayerPart",
    } <= actions("DeployRole")


# --- The workflow --------------------------------------------------------------------------------


def test_forks_get_no_token_and_only_tags_deploy() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/deploy.yml").read_text())
    on, jobs = workflow[True], workflow["jobs"]  # YAML parses `on` as true
    assert on["push"] == {"tags": ["v*"]}
    assert "head.repo.full_name == github.repository" in jobs["plan"]["if"]
    assert jobs["deploy"]["if"].startswith("github.event_name == 'push'")
    assert jobs["deploy"]["permissions"] == {"contents": "read", "id-token": "write"}
    roles = {
        name: step["with"]["role-to-assume"]
        for name, job in jobs.items()
        for step in job["steps"]
        if "configure-aws-credentials" in step.get("uses", "")
    }
    assert roles == {
        "plan": "${{ vars.AWS_PLAN_ROLE }}",
        "deploy": "${{ vars.AWS_DEPLOY_ROLE }}",
    }
    assert "pull_request_target" not in on


# --- The plan ------------------------------------------------------------------------------------


class ChangeSets:
    """Fake change sets, since moto has none for nested stacks."""

    def __init__(self, reason: str = "", *, only_nested: bool = False) -> None:
        self.reason, self.only_nested = reason, only_nested
        self.request: dict[str, Any] = {}
        self.deleted: list[str] = []

    def create_change_set(self, **request: Any) -> None:
        self.request = request

    def get_waiter(self, _: str) -> Any:
        from botocore.exceptions import WaiterError

        def wait(**_: str) -> None:
            if self.reason and (self.request["IncludeNestedStacks"] or not self.only_nested):
                raise WaiterError("ChangeSetCreateComplete", self.reason, {})

        return type("Waiter", (), {"wait": staticmethod(wait)})()

    def describe_change_set(self, StackName: str = "", **page: str) -> dict[str, Any]:  # noqa: N803
        if self.reason:
            return {"StatusReason": self.reason if StackName else "a value is not known"}
        if StackName == "inner":
            change = {"LogicalResourceId": "Instance", "ResourceType": "AWS::RDS::DBInstance"}
            return {
                "Changes": [
                    {"ResourceChange": {**change, "Action": "Modify", "Replacement": "True"}}
                ]
            }
        if "NextToken" not in page:
            nested = {"LogicalResourceId": "Database", "ChangeSetId": "inner-set"}
            return {
                "Changes": [{"ResourceChange": {**nested, "PhysicalResourceId": "inner"}}],
                "NextToken": "more",
            }
        change = {"LogicalResourceId": "Topic", "ResourceType": "AWS::SNS::Topic"}
        return {"Changes": [{"ResourceChange": {**change, "Action": "Add"}}]}

    def delete_change_set(self, ChangeSetName: str, **_: str) -> None:  # noqa: N803  # AWS's names
        self.deleted.append(ChangeSetName)


@pytest.fixture
def packaged(monkeypatch: pytest.MonkeyPatch) -> None:
    def package(template: str, prefix: str, region: str, output: Path) -> None:
        assert (prefix, region) == ("warm-engine-plan", REGION)
        output.write_text("Resources: {}\n")

    monkeypatch.setattr(programs, "package", package)


@pytest.mark.usefixtures("packaged")
def test_the_plan_lists_nested_changes_and_deletes_its_change_set(
    account: LambdaSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    values = preflight.examine([], "warm-engine").parameters
    aws_double.create_application(
        "warm-engine", **values, Release="1", FunctionImage="f", BudgetedConnections="65"
    )
    sets = ChangeSets()
    stack = stacks.get(boto3.Session(region_name=REGION), "warm-engine")
    monkeypatch.setattr(stacks, "get", lambda *_: stack)
    monkeypatch.setattr(stacks, "client", lambda _: sets)
    monkeypatch.setattr(stacks, "find", lambda _, name: stack if name == stack.name else None)
    report = tmp_path / "plan.md"
    assert deploy.show(["PoolerTasks=3"], "warm-engine", report) == 0
    assert report.read_text().splitlines()[2:] == [
        "| resource | type | action | replaced |",
        "|---|---|---|---|",
        "| Database/Instance | AWS::RDS::DBInstance | Modify | True |",
        "| Topic | AWS::SNS::Topic | Add |  |",
    ]
    passed = {
        parameter["ParameterKey"]: parameter["ParameterValue"]
        for parameter in sets.request["Parameters"]
    }
    assert passed["PoolerTasks"] == "3"
    assert passed["FunctionImage"] == "f"  # the stack's: nothing is built
    assert passed["BudgetedConnections"] != "65"
    assert sets.request["IncludeNestedStacks"] is True
    assert len(sets.deleted) == 1


def planned(monkeypatch: pytest.MonkeyPatch, sets: ChangeSets) -> str:
    monkeypatch.setattr(stacks, "client", lambda _: sets)
    session, stack = boto3.Session(region_name=REGION), stacks.Stack("warm-engine", "", {}, {})
    try:
        return plan.changes(session, stack, {})
    finally:
        assert len(sets.deleted) == (2 if not sets.request["IncludeNestedStacks"] else 1)


@pytest.mark.usefixtures("packaged")
def test_an_empty_plan_is_reported_and_errors_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = "The submitted information didn't contain changes."
    assert "no resource changes" in planned(monkeypatch, ChangeSets(nothing))
    with pytest.raises(OperatorError, match="CloudFormation cannot plan that: Denied"):
        planned(monkeypatch, ChangeSets("Denied"))


@pytest.mark.usefixtures("packaged")
def test_unplannable_nested_stacks_are_reported_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inner = "arn:aws:cloudformation:eu-central-1:123456789012:changeSet/plan-Function-1/70d48f2d"
    reason = f"Nested change set {inner} was not successfully created: Currently in FAILED."
    sets = ChangeSets(reason, only_nested=True)
    monkeypatch.setattr(plan, "_rows", lambda *_: [("Function", "stack", "Modify", "")])
    message = planned(monkeypatch, sets)
    assert "| Function | stack | Modify |  |" in message
    assert (
        "Nested stacks are not shown: CloudFormation cannot plan that: a value is not kn" in message
    )


def test_a_configured_cloudformation_role_is_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, ...]] = []

    def run(*words: str, quiet: bool = False) -> str:
        started.append(words)
        return ""

    monkeypatch.setattr(programs, "run", run)
    monkeypatch.setenv("CLOUDFORMATION_ROLE", "arn:aws:iam::123456789012:role/execution")
    programs.sam("template", "shop", REGION)
    monkeypatch.delenv("CLOUDFORMATION_ROLE")
    programs.sam("template", "shop", REGION)
    assert started[0][started[0].index("--role-arn") + 1].endswith(":role/execution")
    assert "--role-arn" not in started[1]


def test_make_passes_the_workflow_variables_on() -> None:
    done = subprocess.run(
        ["make", "-n", "deploy", "PLAN=/tmp/plan.md"], cwd=ROOT, capture_output=True, text=True
    )
    assert "infra.aws.deploy" in done.stdout
