"""The CAs by which servers are verified: PgBouncer's own, and Amazon's for RDS and RDS Proxy.

The first `make deploy` creates PgBouncer's certificate, and later ones keep it. `python -m
infra.aws.trust` stores the next one, which no PgBouncer uses yet, for the stack that the
environment variable STACK names.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path

import boto3

from infra.aws import account, certificate, stacks, template_file
from infra.aws.account import OperatorError

TRUST = template_file.FOLDER / ".trust"
#: File in TRUST → its source. RDS's bundle is that of all regions, because the file is kept for
#: later deployments to other regions.
SOURCES = {
    "rds-global.pem": "https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem",
    "proxy.pem": "https://www.amazontrust.com/repository/AmazonRootCA1.pem",
}
#: Stages of the secret's versions whose CAs a function trusts: the current, the next and the
#: previous one. With the current one alone, logins would fail while PgBouncer's certificate is
#: replaced.
TRUSTED = ("AWSCURRENT", "AWSPENDING", "AWSPREVIOUS")


def secret_name(stack: str) -> str:
    return f"{stack}/pooler-tls"


def pooler_host(stack: str) -> str:
    """Return the host name in PgBouncer's certificate; pooler.yaml has its DNS record."""
    return f"pooler.{stacks.prefix_of(stack)}.internal"


def folder(session: boto3.Session, stack: str) -> Path:
    """Return the folder of the stack's own CA, relative to infra/aws, which is Docker's context."""
    return Path(".trust", str(session.region_name), stack)


def prepare(session: boto3.Session, stack: str) -> str:
    """Create PgBouncer's certificate if it is missing, and write all CAs to TRUST.

    Returns the ARN of the certificate's secret.
    """
    secrets, name = session.client("secretsmanager"), secret_name(stack)
    try:
        arn = secrets.describe_secret(SecretId=name)["ARN"]
    except secrets.exceptions.ResourceNotFoundException:
        first = json.dumps(certificate.make(pooler_host(stack)))
        arn = secrets.create_secret(Name=name, SecretString=first)["ARN"]
    target = TRUST.parent / folder(session, stack)
    target.mkdir(parents=True, exist_ok=True)
    (target / "pooler.pem").write_text("".join(_authorities(session, name)))
    for file, source in SOURCES.items():
        _fetch(source, TRUST / file)
    return str(arn)


def _authorities(session: boto3.Session, name: str) -> list[str]:
    """Return the distinct CAs in the trusted versions of the secret `name`."""
    secrets, authorities = session.client("secretsmanager"), []
    for stage in TRUSTED:
        try:
            version = secrets.get_secret_value(SecretId=name, VersionStage=stage)
        except secrets.exceptions.ResourceNotFoundException:
            continue
        authorities.append(json.loads(version["SecretString"])["ca"])
    return list(dict.fromkeys(authorities))


def renew(stack: str) -> int:
    """Store PgBouncer's next certificate beside the current one, and print the next steps."""
    session = account.identify().session
    secrets, name = session.client("secretsmanager"), secret_name(stack)
    versions = secrets.describe_secret(SecretId=name)["VersionIdsToStages"]
    [current] = [version for version, stages in versions.items() if "AWSCURRENT" in stages]
    following = json.dumps(certificate.make(pooler_host(stack)))
    pending = secrets.put_secret_value(
        SecretId=name, SecretString=following, VersionStages=["AWSPENDING"]
    )["VersionId"]
    print(
        f"1. Done: PgBouncer's next certificate is version {pending} of {name}.\n"
        f"2. `make deploy STACK={stack}`: the function trusts both CAs.\n"
        "3. `aws secretsmanager update-secret-version-stage "
        f"--secret-id {name} --version-stage AWSCURRENT --move-to-version-id {pending} "
        f"--remove-from-version-id {current}`\n"
        "4. `aws ecs update-service --force-new-deployment` with the outputs PoolerCluster and "
        "PoolerService: new tasks read the new certificate"
    )
    return 0


def main() -> int:
    return account.command("trust", lambda: renew(stacks.chosen_name()))


def _fetch(url: str, path: Path) -> None:
    """Download a file of certificates, unless it exists: without internet it is copied by hand."""
    if path.exists():
        return
    try:
        with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310  # an https URL in SOURCES
            text = response.read()
    except OSError as error:
        raise OperatorError(f"{url} cannot be read: {error}. Save it as {path}") from None
    if not text.startswith(b"-----BEGIN CERTIFICATE-----"):
        raise OperatorError(
            f"the response from {url} is not a PEM file. Save the right file as {path}"
        )
    path.write_bytes(text)


if __name__ == "__main__":
    sys.exit(main())
