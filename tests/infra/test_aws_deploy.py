"""`make deploy` runs its steps in order of dependency, in the configured region."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from cryptography import x509

from infra.aws import account, certificate, deploy, images, preflight, programs, stacks, trust
from infra.local import ROOT
from tests.conftest import set_environment
from tests.infra import aws_double
from tests.infra.aws_double import DOCKER, DOCKER_FOR_BOTH, REGION, LambdaSettings, client


class Steps(list[str]):
    """Records the steps in order. Docker and SAM are fakes, AWS is moto."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict[str, str]] = []

    @property
    def parameters(self) -> dict[str, str]:
        """The parameters of the last SAM command."""
        return self.calls[-1]

    def kinds(self) -> list[str]:
        return [" ".join(step.split()[:2]) for step in self]


@pytest.fixture
def steps(
    aws: str, lambda_settings: LambdaSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Steps:
    done = Steps()
    aws_double.program(tmp_path / "bin", "docker", DOCKER)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)

    def run(*words: str, stdin: str | None = None, quiet: bool = False) -> str:
        done.append(" ".join(words))
        assert stdin is None or stdin not in done[-1]  # a password is passed on standard input
        if words[1] == "push":
            aws_double.push_image(*words[-1].partition("amazonaws.com/")[2].split(":"))
        return f"sha256:{'a' * 64}\n" if quiet else ""

    def sam(
        template: str, stack: str, region: str, repository: str = "", **parameters: str
    ) -> None:
        done.append(f"sam {template} {stack} {region}")
        done.calls.append(parameters)
        if template == "registry":
            aws_double.create_registry(stack, **parameters)
        else:
            aws_double.create_application(stack, **parameters)

    monkeypatch.setattr(programs, "run", run)
    monkeypatch.setattr(programs, "sam", sam)
    monkeypatch.setattr(trust, "TRUST", tmp_path / ".trust")
    (tmp_path / ".trust").mkdir()
    for name in trust.SOURCES:  # created by hand, as where no network is available
        (tmp_path / ".trust" / name).write_text("-----BEGIN CERTIFICATE-----\n")
    return done


def test_deployment_steps_run_in_dependency_order(
    steps: Steps, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deploy.deploy(["MultiAz=false"], "warm-engine")
    each_image = ["docker context", "docker buildx", "docker buildx"]
    each_image += ["docker login", "docker tag", "docker push"]
    twice = ["sam template", "sam template"]  # see the next test
    assert steps.kinds() == ["sam registry", *each_image * 3, *twice]
    for name in images.IMAGES:
        # By digest: what was tested is what runs.
        assert f"/{name}@sha256:" in steps.parameters[f"{name.capitalize()}Image"]
    assert steps.parameters["MultiAz"] == "false"
    assert steps.parameters["BudgetedConnections"] == "65"
    assert steps.parameters["S3PrefixList"].startswith("pl-")
    ca = tmp_path / ".trust" / REGION / "warm-engine" / "pooler.pem"
    assert "BEGIN CERTIFICATE" in ca.read_text()
    expected = "accepted requests: signed ones\nhttps://example/orders/1\n"
    assert capsys.readouterr().out.endswith(expected)


def test_deletion_protection_is_enabled_once_the_database_exists(steps: Steps) -> None:
    """A protected database could not be rolled back if its creation failed."""
    for _ in range(2):
        deploy.deploy([], "warm-engine")
    calls = [call for call in steps.calls if "FunctionImage" in call]
    assert [call["DeletionProtection"] for call in calls] == ["false", "true", "true"]
    assert {**calls[0], "DeletionProtection": "true"} == calls[1]  # and nothing else


def test_a_new_lookup_password_changes_the_template_parameters(steps: Steps) -> None:
    for _ in range(2):  # a repeated deployment without a change must not replace any PgBouncer
        deploy.deploy([], "warm-engine")
        assert steps.parameters["SecretVersions"] == "none,none"
    assert steps.calls[-1] == steps.calls[-3]  # nor change anything else; the first runs SAM twice
    secrets = boto3.client("secretsmanager", region_name=REGION)
    versions = []
    for password in ("1", "2"):
        put = secrets.put_secret_value(SecretId="warm-engine-LookupSecret", SecretString=password)
        versions.append(put["VersionId"])
        deploy.deploy([], "warm-engine")
        assert steps.parameters["SecretVersions"].partition(",")[2] == versions[-1]
    assert versions[0] != versions[1]


def test_a_second_deployment_keeps_the_parameters_of_the_first(steps: Steps) -> None:
    """SAM keeps them too, but the budget, alarms and images would use the defaults."""
    deploy.deploy(["InstanceClass=db.t4g.medium", "PoolerTasks=3"], "warm-engine")
    first = steps.parameters
    topic = aws_double.client("sns").create_topic(Name="alarms")["TopicArn"]
    deploy.deploy([f"AlarmTopic={topic}"], "warm-engine")
    second = steps.parameters
    assert (second["InstanceClass"], second["PoolerTasks"]) == ("db.t4g.medium", "3")
    assert second["BudgetedConnections"] == first["BudgetedConnections"] != "65"
    assert second["AlarmTopic"].endswith(":alarms")
    deploy.deploy(["AlarmTopic="], "warm-engine")
    assert steps.parameters["AlarmTopic"] == ""  # explicitly, so that it does not stay what it was


def test_images_are_built_for_the_stack_architecture(steps: Steps, tmp_path: Path) -> None:
    aws_double.program(tmp_path / "bin", "docker", DOCKER_FOR_BOTH)
    deploy.deploy(["Architecture=arm64"], "warm-engine")
    steps.clear()
    deploy.deploy([], "warm-engine")
    builds = [step for step in steps if step.startswith("docker buildx build")]
    assert len(builds) == 6
    assert all("--platform linux/arm64" in build for build in builds)


def test_images_are_built_by_dockers_own_builder_and_loaded(steps: Steps) -> None:
    """An image in another builder's cache could neither be built upon nor pushed."""
    deploy.deploy([], "warm-engine")
    builds = [step for step in steps if step.startswith("docker buildx build")]
    assert len(builds) == 6
    for build in builds:
        assert " --load " in build
        assert f" --builder sha256:{'a' * 64} " in build  # the output of the fake `docker`


def test_each_stack_has_its_own_repositories_and_certificate(steps: Steps) -> None:
    deploy.deploy([], "Shop")
    assert "sam registry Shop-registry eu-central-1" in steps
    assert steps.parameters["Prefix"] == steps.calls[0]["Prefix"] == "shop"
    pushed = [step for step in steps if step.startswith("docker push")]
    assert [step.partition("amazonaws.com/")[2].partition("/")[0] for step in pushed] == [
        "shop"
    ] * 3
    assert ":secret:Shop/pooler-tls" in steps.parameters["PoolerTlsSecret"]
    secrets = boto3.client("secretsmanager", region_name=REGION)
    tls = json.loads(secrets.get_secret_value(SecretId="Shop/pooler-tls")["SecretString"])
    names = x509.load_pem_x509_certificate(tls["certificate"].encode()).extensions
    alternative = names.get_extension_for_class(x509.SubjectAlternativeName).value
    assert alternative.get_values_for_type(x509.DNSName) == ["pooler.shop.internal"]


def test_without_available_concurrency_it_deploys_with_a_hint(
    steps: Steps, lambda_settings: LambdaSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    lambda_settings.limits = {"ConcurrentExecutions": 10, "UnreservedConcurrentExecutions": 10}
    deploy.deploy([], "warm-engine")
    assert steps.parameters["ReservedConcurrency"] == "0"
    output = capsys.readouterr().out
    assert "Lambda quota is 10: deploying with ReservedConcurrency=0" in output
    assert "--quota-code L-B99A9384 --desired-value 1000" in output
    assert preflight.examine([], "warm-engine").budget.sandboxes == 10


def test_certificates_and_images_are_created_once(steps: Steps, tmp_path: Path) -> None:
    deploy.deploy([], "warm-engine")
    session = boto3.Session(region_name=REGION)
    pem = tmp_path / trust.folder(session, "warm-engine") / "pooler.pem"
    ca = pem.read_text()
    assert trust.prepare(session, "warm-engine")
    assert pem.read_text() == ca
    pushes = len([step for step in steps if "docker push" in step])
    repository = stacks.get(session, "warm-engine-registry").outputs["Function"]
    pushed = images.push(session, "function", repository, "x86_64", "warm-engine")
    assert pushed == steps.parameters["FunctionImage"]
    assert len([step for step in steps if "docker push" in step]) == pushes


def test_one_ca_bundle_covers_every_region() -> None:
    """If only one region's CA were kept, a deployment to another region would trust no database."""
    assert trust.SOURCES["rds-global.pem"].endswith("/global/global-bundle.pem")
    dockerfile = (ROOT / "infra/aws/Dockerfile").read_text()
    assert dockerfile.count(".trust/rds-global.pem") == 2
    for file in trust.SOURCES:
        assert f".trust/{file} " in dockerfile


def test_two_stacks_of_one_checkout_share_neither_a_ca_nor_a_tag(
    steps: Steps, tmp_path: Path
) -> None:
    """If they did, one stack's function could trust the other stack's PgBouncer."""
    deploy.deploy([], "warm-engine")
    first = {step for step in steps if step.startswith("docker buildx build")}
    steps.clear()
    deploy.deploy([], "shop")
    second = {step for step in steps if step.startswith("docker buildx build")}
    session = boto3.Session(region_name=REGION)
    one, other = (tmp_path / trust.folder(session, name) for name in ("warm-engine", "shop"))
    assert (one / "pooler.pem").read_text() != (other / "pooler.pem").read_text()
    assert not first & second
    trusted = re.compile(r"--build-arg TRUST=(\S+) ")
    folders = {match[1] for step in second if (match := trusted.search(step))}
    assert folders == {f".trust/{REGION}/shop"}
    assert "${TRUST}/pooler.pem " in (ROOT / "infra/aws/Dockerfile").read_text()


def test_a_function_trusts_the_next_and_the_previous_certificate(
    steps: Steps, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session, secrets = boto3.Session(region_name=REGION), client("secretsmanager")
    name = trust.secret_name("warm-engine")

    def trusted() -> list[str]:
        trust.prepare(session, "warm-engine")
        text = (tmp_path / trust.folder(session, "warm-engine") / "pooler.pem").read_text()
        assert "PRIVATE" not in text
        return [f"-----BEGIN{certificate}" for certificate in text.split("-----BEGIN")[1:]]

    def in_use() -> tuple[str, str]:
        secret = secrets.get_secret_value(SecretId=name, VersionStage="AWSCURRENT")
        return json.loads(secret["SecretString"])["ca"], secret["VersionId"]

    assert trusted() == [in_use()[0]]
    old, version = in_use()
    trust.renew("warm-engine")
    assert in_use() == (
        old,
        version,
    )  # a task that starts now has the same certificate as the others
    old_and_new = trusted()
    assert old_and_new[0] == old
    assert len(old_and_new) == 2
    # Run the printed command.
    printed = capsys.readouterr().out
    [command] = re.findall(r"`aws secretsmanager update-secret-version-stage (.*)`", printed)
    words = command.split()
    options = dict(zip(words[::2], words[1::2], strict=True))
    secrets.update_secret_version_stage(
        SecretId=options["--secret-id"],
        VersionStage=options["--version-stage"],
        MoveToVersionId=options["--move-to-version-id"],
        RemoveFromVersionId=options["--remove-from-version-id"],
    )
    new, _ = in_use()
    assert new == old_and_new[1]
    assert trusted() == [new, old]


def test_a_registry_without_repositories_is_reported_in_one_line(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacks, "get", lambda *_: stacks.Stack("x", "", {}, {"Function": "f"}))
    with pytest.raises(account.OperatorError, match="x-registry has no output Migrate, Pooler"):
        deploy.repositories_of(boto3.Session(region_name=REGION), "x-registry")


def test_a_changed_setting_is_a_new_release() -> None:
    assert deploy.release({"PoolSize": "1"}) == deploy.release({"PoolSize": "1"})
    assert deploy.release({"PoolSize": "1"}) != deploy.release({"PoolSize": "2"})
    # The stack's own, which a plan begins with and a deployment does not.
    stored = {"PoolSize": "1", "Release": "old", "SecretVersions": "none,none"}
    assert deploy.release(stored) == deploy.release({"PoolSize": "1"})


def test_no_two_certificates_share_a_ca() -> None:
    one, other = certificate.make("pooler.example"), certificate.make("pooler.example")
    assert one["ca"] != other["ca"]
    assert "PRIVATE" not in one["ca"] + one["certificate"]


# --- SAM, and the region -------------------------------------------------------------------------


def test_sam_receives_the_region_and_all_values_even_empty_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[tuple[str, ...]] = []
    calls: dict[str, Any] = {}

    def run(*words: str) -> str:
        started.append(words)
        [file] = [word for word in words if word.startswith("file://")]
        assert file.endswith(".yaml")  # SAM accepts no other
        calls.update(yaml.safe_load(Path(file.removeprefix("file://")).read_text()))
        return ""

    monkeypatch.setattr(programs, "run", run)
    programs.sam("template", "shop", REGION, "host/x", AlarmTopic="", SubnetIds="a, b")
    [words] = started
    assert words[words.index("--region") + 1] == REGION
    assert words[words.index("--s3-prefix") + 1] == "shop"
    assert calls == {"AlarmTopic": "", "SubnetIds": "a, b"}


@pytest.mark.parametrize(
    ("environment", "region"),
    [
        ({"AWS_REGION": "eu-north-1"}, "eu-north-1"),
        ({"AWS_DEFAULT_REGION": "eu-north-1"}, "eu-north-1"),
        ({"AWS_REGION": "eu-north-1", "AWS_DEFAULT_REGION": "us-east-1"}, "eu-north-1"),
        ({"AWS_PROFILE": "mine"}, "eu-west-3"),
        ({"AWS_PROFILE": "mine", "AWS_REGION": "eu-north-1"}, "eu-north-1"),
    ],
)
def test_every_program_uses_the_same_region(
    environment: dict[str, str], region: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    profile = tmp_path / "config"
    profile.write_text("[profile mine]\nregion = eu-west-3\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(profile))
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.setenv(name, "")  # so that monkeypatch removes what is set below
        monkeypatch.delenv(name)
    set_environment(monkeypatch, environment)
    assert account.resolve_region() == region
    printed = subprocess.run(
        [sys.executable, "-c", "import boto3; print(boto3.Session().region_name)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout.strip() == region
    assert os.environ["AWS_REGION"] == os.environ["AWS_DEFAULT_REGION"] == region


def test_a_failing_program_is_reported_in_one_line_with_its_status() -> None:
    with pytest.raises(account.OperatorError, match="`false x` failed with status 1"):
        programs.run("false", "x")
    with pytest.raises(account.OperatorError, match="no-such-program is not installed"):
        programs.run("no-such-program", "x")
    assert json.loads(programs.run("printf", '{"a": 1}', quiet=True)) == {"a": 1}
