"""`make destroy` asks first, says what it deletes and what remains, and leaves nothing else."""

import os
import subprocess
import sys
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from infra.aws import destroy, stacks
from infra.aws.account import OperatorError
from infra.local import ROOT
from tests.infra import aws_double
from tests.infra.aws_double import REGION, client

DATABASE = "warm-engine-database"
#: The parts of a deployment that `make destroy` looks at.
BODY = {
    "Parameters": {"Release": {"Type": "String"}},
    "Resources": {
        "Instance": {
            "Type": "AWS::RDS::DBInstance",
            "DeletionPolicy": "Snapshot",
            "Properties": {
                "DBInstanceIdentifier": DATABASE,
                "Engine": "postgres",
                "DBInstanceClass": "db.t4g.small",
                "AllocatedStorage": "20",
                "DeletionProtection": True,
                "MasterUsername": "storefront_admin",
                "MasterUserPassword": "none-of-ours",
            },
        },
        "Log": {"Type": "AWS::Logs::LogGroup", "Properties": {"LogGroupName": "ours"}},
    },
}


@pytest.fixture
def deployed(aws: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(destroy, "POLL_SECONDS", 1)
    monkeypatch.setenv("FORCE", "")
    aws_double.create_stack("warm-engine", BODY, Release="1")
    aws_double.create_registry("warm-engine-registry", Prefix="warm-engine")
    client("secretsmanager").create_secret(Name="warm-engine/pooler-tls", SecretString="x")
    for group in (f"/aws/rds/instance/{DATABASE}/postgresql", "/aws/rds/instance/other/postgresql"):
        client("logs").create_log_group(logGroupName=group)
    client("rds").create_db_snapshot(DBSnapshotIdentifier="last", DBInstanceIdentifier=DATABASE)


def sam_bucket(*keys: str) -> None:
    """Create SAM's stack with its versioned bucket and an object in it."""
    bucket = {"Type": "AWS::S3::Bucket", "Properties": {"BucketName": "sam"}}
    outputs = {"SourceBucket": {"Value": {"Ref": "Bucket"}}}
    body = {"Resources": {"Bucket": bucket}, "Outputs": outputs}
    aws_double.create_stack(stacks.SAM_STACK, body)
    versioned = {"Status": "Enabled"}  # moto's CloudFormation ignores it
    client("s3").put_bucket_versioning(Bucket="sam", VersioningConfiguration=versioned)
    for key in keys:
        for version in (b"1", b"2"):
            client("s3").put_object(Bucket="sam", Key=key, Body=version)


def remaining() -> dict[str, list[str]]:
    return {
        "stacks": [s["StackName"] for s in client("cloudformation").describe_stacks()["Stacks"]],
        "databases": [
            instance["DBInstanceIdentifier"]
            for instance in client("rds").describe_db_instances()["DBInstances"]
        ],
        "secrets": client("secretsmanager").list_secrets()["SecretList"],
        "logs": [g["logGroupName"] for g in client("logs").describe_log_groups()["logGroups"]],
        "repositories": client("ecr").describe_repositories()["repositories"],
    }


@pytest.mark.usefixtures("deployed")
def test_everything_is_deleted_and_what_remains_is_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sam_bucket("warm-engine/a.template", "warm-engine-registry/b.template")
    monkeypatch.setenv("FORCE", "1")
    assert destroy.destroy("warm-engine") == 0
    output = capsys.readouterr().out
    assert remaining() == {
        "stacks": [],
        "databases": [],
        "secrets": [],
        "logs": ["/aws/rds/instance/other/postgresql"],
        "repositories": [],
    }
    assert client("s3").list_buckets()["Buckets"] == []
    for line in (
        "the stack warm-engine\n",
        "the stack warm-engine-registry\n",
        f"the database {DATABASE}, with its backups",
        "the secret warm-engine/pooler-tls, without a recovery period",
        f"the log group /aws/rds/instance/{DATABASE}/postgresql",
        "4 templates in SAM's bucket sam; also the bucket itself and its stack",
        f"a final snapshot of the database {DATABASE}",
        "Lambda has released its network interfaces",
        "kept: the snapshot last, which costs money",
    ):
        assert line in output, line
    assert destroy.destroy("warm-engine") == 0
    assert "there is no deployment warm-engine" in capsys.readouterr().out


@pytest.mark.usefixtures("deployed")
def test_a_shared_bucket_and_its_other_objects_are_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sam_bucket("warm-engine/a.template", "shop/c.template", "warm-engine-2/d.template")
    monkeypatch.setenv("FORCE", "1")
    destroy.destroy("warm-engine")
    assert "SAM's bucket sam: other applications use it" in capsys.readouterr().out
    kept = client("s3").list_object_versions(Bucket="sam")["Versions"]
    assert {version["Key"] for version in kept} == {"shop/c.template", "warm-engine-2/d.template"}


@pytest.mark.usefixtures("deployed")
def test_without_confirmation_nothing_is_deleted(capsys: pytest.CaptureFixture[str]) -> None:
    before = remaining()
    for answer in ("", "yes", "warm-engine-registry"):
        with pytest.raises(OperatorError, match="nothing was deleted"):
            destroy.destroy("warm-engine", lambda _, answer=answer: answer)  # type: ignore[misc]  # bound as a default
    assert remaining() == before
    assert f"the database {DATABASE}" in capsys.readouterr().out
    destroy.destroy("warm-engine", lambda _: "warm-engine")
    assert remaining()["stacks"] == []


@pytest.mark.parametrize("name", ["shop", "shop-registry"])
def test_a_foreign_stack_is_not_deleted_even_with_force(
    aws: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("FORCE", "1")
    aws_double.create_stack(name, aws_double.NOTHING)
    client("secretsmanager").create_secret(Name="shop/pooler-tls", SecretString="x")
    before = remaining()
    with pytest.raises(OperatorError, match=f"the stack {name} belongs to another application"):
        destroy.destroy("shop")
    assert remaining() == before


@pytest.mark.usefixtures("deployed")
def test_without_a_terminal_the_hint_names_force() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "infra.aws.destroy"],
        cwd=ROOT,
        env={**os.environ, "STACK": "warm-engine"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr == "destroy: no terminal to confirm; nothing was deleted. Set FORCE=1\n"
    assert remaining()["stacks"] != []


@pytest.mark.usefixtures("deployed")
def test_a_failed_deletion_lists_the_remaining_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import WaiterError

    class Waiter:
        def wait(self, **_: Any) -> None:
            raise WaiterError("StackDeleteComplete", "failed", {})

    client_of_stacks = stacks.client(boto3.Session(region_name=REGION))
    monkeypatch.setattr(client_of_stacks, "get_waiter", lambda _: Waiter())
    monkeypatch.setattr(client_of_stacks, "delete_stack", lambda **_: None)
    monkeypatch.setattr(stacks, "client", lambda _: client_of_stacks)
    monkeypatch.setenv("FORCE", "1")
    with pytest.raises(OperatorError, match=r"warm-engine cannot be deleted: .*Log \(ours\)"):
        destroy.destroy("warm-engine")
    # The next run continues from here.
    assert client("secretsmanager").list_secrets()["SecretList"] != []


@pytest.mark.usefixtures("deployed")
def test_a_deleted_cloudformation_role_is_reported_and_can_be_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CloudFormation deletes with the role of the last deployment, unless it is given another."""
    replacement = "arn:aws:iam::123456789012:role/replacement"
    client_of_stacks = stacks.client(boto3.Session(region_name=REGION))
    delete_stack = client_of_stacks.delete_stack

    def delete(StackName: str, RoleARN: str = "") -> None:  # noqa: N803  # AWS's names
        if RoleARN != replacement:
            message = "Role arn:aws:iam::123456789012:role/x is invalid or cannot be assumed"
            error = {"Error": {"Code": "ValidationError", "Message": message}}
            raise ClientError(error, "DeleteStack")  # type: ignore[arg-type]  # a part of it
        delete_stack(StackName=StackName)

    monkeypatch.setattr(client_of_stacks, "delete_stack", delete)
    monkeypatch.setattr(stacks, "client", lambda _: client_of_stacks)
    monkeypatch.setenv("FORCE", "1")
    monkeypatch.delenv("CLOUDFORMATION_ROLE", raising=False)
    with pytest.raises(
        OperatorError, match=r"role/x is invalid or cannot be assumed.*make destroy"
    ):
        destroy.destroy("warm-engine")
    monkeypatch.setenv("CLOUDFORMATION_ROLE", replacement)
    assert destroy.destroy("warm-engine") == 0
    assert remaining()["stacks"] == []


@pytest.mark.usefixtures("aws")
def test_a_stack_that_was_never_created_is_deleted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """CloudFormation leaves such a stack when it rejects the first change set."""
    monkeypatch.setenv("FORCE", "1")
    client("cloudformation").create_change_set(
        StackName="warm-engine",
        ChangeSetName="first",
        ChangeSetType="CREATE",
        TemplateBody='{"Resources": {"Topic": {"Type": "AWS::SNS::Topic"}}}',
    )
    assert stacks.find(boto3.Session(region_name=REGION), "warm-engine") is None
    destroy.destroy("warm-engine")
    assert remaining()["stacks"] == []
