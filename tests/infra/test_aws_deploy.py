"""`make deploy` says in a line what is missing, and does each step before the one that needs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

from infra.aws import certificate, deploy
from infra.local import ROOT

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
#: No profile, no file, no metadata service.
NOBODY = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}


def deployed(*words: str, **environment: str) -> tuple[int, str]:
    """Exit code and words of the command, with nobody's credentials."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    done = subprocess.run(
        [sys.executable, "-m", "infra.aws.deploy", *words],
        cwd=ROOT,
        env={**ours, **NOBODY, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def test_without_credentials_it_says_how_to_give_some() -> None:
    code, said = deployed(AWS_REGION="eu-central-1", AWS_DEFAULT_REGION="eu-central-1")
    assert (code, said.count("\n")) == (1, 1), said
    assert "no AWS credentials. Set AWS_PROFILE" in said


def test_a_budget_that_does_not_fit_is_deployed_nowhere() -> None:
    code, said = deployed("ReservedConcurrency=6000")
    assert code == 1
    assert "the connection budget does not fit" in said
    assert "change ReservedConcurrency=" in said


@pytest.mark.parametrize("word", ["Reserved=1", "PoolSize", "Release=2"])
def test_a_word_that_is_no_parameter_is_refused_with_those_that_are(word: str) -> None:
    code, said = deployed(word)
    assert (code, said.count("\n")) == (1, 1), said
    assert word in said
    assert "ReservedConcurrency" in said


@pytest.fixture
def steps(aws: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What is done, in order, with Docker and SAM played and AWS moto's."""
    done: list[str] = []
    session = boto3.Session(region_name="eu-central-1")

    def run(*words: str, said: str | None = None, quiet: bool = False) -> str:
        done.append(" ".join(words))
        assert said is None or said not in done[-1]  # a password goes by standard input
        if words[1] == "push":
            repository, _, tag = words[-1].partition("amazonaws.com/")[2].partition(":")
            manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": {"digest": tag}}
            session.client("ecr").put_image(
                repositoryName=repository, imageManifest=json.dumps(manifest), imageTag=tag
            )
        return f"sha256:{'a' * 64}\n" if quiet else ""

    def sam(template: str, stack: str, repository: str = "", **parameters: str) -> None:
        done.append(f"sam {template} {' '.join(f'{k}={v}' for k, v in parameters.items())}")
        if template == "registry":
            for name in deploy.IMAGES:
                session.client("ecr").create_repository(repositoryName=f"warm-engine/{name}")

    def outputs(session: boto3.Session, stack: str) -> dict[str, str]:
        if stack.endswith("-registry"):
            host = "123456789012.dkr.ecr.eu-central-1.amazonaws.com"
            return {name.capitalize(): f"{host}/warm-engine/{name}" for name in deploy.IMAGES}
        return {"Url": "https://example"}

    for name, played in (("run", run), ("sam", sam), ("outputs", outputs)):
        monkeypatch.setattr(deploy, name, played)
    monkeypatch.setattr(deploy, "TRUST", tmp_path)
    for name in ("rds", "proxy"):  # put there by hand, as where no network lets them through
        (tmp_path / f"{name}.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    return done


def test_each_step_comes_before_the_one_that_needs_it(
    steps: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deploy.deploy({"MultiAz": "false"}, "warm-engine")
    kinds = [" ".join(step.split()[:2]) for step in steps]
    each_image = ["docker build", "docker build", "docker login", "docker tag", "docker push"]
    assert kinds == ["docker version", "sam registry", *each_image * 3, "sam template"]
    last = steps[-1]
    for name in deploy.IMAGES:
        assert f"{name.capitalize()}Image=" in last
        assert f"/warm-engine/{name}@sha256:" in last  # by digest: what was tested is what runs
    assert "MultiAz=false" in last
    assert "BudgetedConnections=65" in last
    assert "S3PrefixList=pl-" in last
    assert "BEGIN CERTIFICATE" in (tmp_path / "pooler.pem").read_text()
    assert capsys.readouterr().out.endswith("https://example/orders/1\n")


def test_the_certificate_is_made_once_and_an_image_that_is_there_is_not_pushed_again(
    steps: list[str], tmp_path: Path
) -> None:
    deploy.deploy({}, "warm-engine")
    ca, first = (tmp_path / "pooler.pem").read_text(), steps[-1]
    session = boto3.Session(region_name="eu-central-1")
    assert deploy.trust(session, "warm-engine/pooler-tls")
    assert (tmp_path / "pooler.pem").read_text() == ca
    pushes = len([step for step in steps if "docker push" in step])
    host = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/warm-engine/function"
    assert deploy.push(session, "function", host, "x86_64") in first
    assert len([step for step in steps if "docker push" in step]) == pushes


def test_another_setting_is_another_release() -> None:
    assert deploy.release({"PoolSize": "1"}) == deploy.release({"PoolSize": "1"})
    assert deploy.release({"PoolSize": "1"}) != deploy.release({"PoolSize": "2"})


def test_no_two_certificates_share_a_ca() -> None:
    one, other = certificate.make(deploy.POOLER), certificate.make(deploy.POOLER)
    assert one["ca"] != other["ca"]
    assert "PRIVATE" not in one["ca"] + one["certificate"]
