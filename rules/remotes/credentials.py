"""Who we are to a remote, from the places where other programs look: the environment, ~/.netrc, the AWS profiles.

GCS and Azure need nothing here: obstore reads GOOGLE_APPLICATION_CREDENTIALS, gcloud's own files, AZURE_STORAGE_*.
"""

from __future__ import annotations

import base64
import configparser
import netrc
import os
from pathlib import Path

from rules.errors import Misconfigured, Problem, nearest

__all__ = ["AUTHORIZATION", "authorization", "aws_profile"]

AUTHORIZATION = "ENGINES_CACHE_AUTHORIZATION"  # a whole header, such as "Bearer ..."

# obstore reads the environment and the metadata services itself, but no files.
# Names: https://docs.aws.amazon.com/sdkref/latest/guide/settings-reference.html
_FROM_PROFILE = {
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
    "region": "region",
    "endpoint_url": "endpoint",
}
_KEYS = ("access_key_id", "secret_access_key", "session_token")
_SET_BY = {
    "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "endpoint": ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"),
    **dict.fromkeys(_KEYS, ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SKIP_SIGNATURE")),
}


def authorization(host: str) -> dict[str, str]:
    """The Authorization header for `host`, if the environment or the netrc file ($NETRC, else ~/.netrc) has one."""
    value = os.environ.get(AUTHORIZATION, "").strip()
    if value:
        if not value.isprintable() or not value.isascii():
            raise Misconfigured(Problem(what=f"{AUTHORIZATION} is not a header", hint="one line of ASCII"))
        return {"Authorization": value}
    login = _netrc(host)
    if login is None:
        return {}
    return {"Authorization": f"Basic {base64.b64encode(f'{login[0]}:{login[2]}'.encode()).decode()}"}


def _netrc(host: str) -> tuple[str, str | None, str | None] | None:
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host)
    except OSError:
        return None
    except netrc.NetrcParseError as error:  # its message may quote a password
        raise Misconfigured(Problem(what=f"the netrc file cannot be read: line {error.lineno}")) from None


def aws_profile() -> dict[str, str]:
    """What AWS_PROFILE, or the profile `default`, adds to the environment, in obstore's names. The environment wins."""
    asked = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE")
    config = _ini("AWS_CONFIG_FILE", "config")
    login = _ini("AWS_SHARED_CREDENTIALS_FILE", "credentials")
    name = asked or "default"
    known = {section.removeprefix("profile ") for section in (*config, *login)} - {configparser.DEFAULTSECT}
    if asked and asked not in known:
        raise Misconfigured(Problem(what=f"AWS_PROFILE: no profile {asked!r}", hint=nearest(asked, sorted(known))))
    section = config.get("default" if name == "default" else f"profile {name}", {})
    values = {**section, **login.get(name, {})}
    found = {ours: values[theirs] for theirs, ours in _FROM_PROFILE.items() if theirs in values}
    wanted = {ours: value for ours, value in found.items() if not any(map(os.environ.get, _SET_BY[ours]))}
    if asked and "access_key_id" not in found and not any(map(os.environ.get, _SET_BY["access_key_id"])):
        hint = 'for SSO, roles and processes: eval "$(aws configure export-credentials --format env)"'
        raise Misconfigured(Problem(what=f"AWS_PROFILE: profile {asked!r} holds no access key", hint=hint))
    return wanted


def _ini(variable: str, name: str) -> dict[str, dict[str, str]]:
    path = Path(os.environ.get(variable) or Path.home() / ".aws" / name).expanduser()
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):  # the message may quote a key
        raise Misconfigured(Problem(what=f"the AWS {name} file cannot be read", facts=(("file", str(path)),))) from None
    return {section: dict(parser[section]) for section in parser.sections()}
