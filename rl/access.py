"""Who may talk to a cluster: on other machines, only those who have its token. Imports nothing of Ray's."""

import ipaddress
from collections.abc import MutableMapping
from pathlib import Path

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


def local(address: str) -> bool:
    """Whether a Ray address stays on this machine; `auto` may lead anywhere."""
    host = address.removeprefix("ray://").rpartition(":")[0].strip("[]") or address
    try:
        return host in ("", "local", "localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def demand_token(address: str, environment: MutableMapping[str, str], home: Path) -> str:
    """Switch token authentication on for a cluster that is not local; before Ray is imported.

    Returns a warning if the user has switched it off. Raises ValueError if there is no token."""
    if local(address):
        return ""
    mode = environment.setdefault(MODE, "token").lower()
    if mode == "disabled":
        return f"{MODE}=disabled: whoever reaches the cluster at {address} can run code on it"
    if mode != "token":
        raise ValueError(f"{MODE} = '{mode}': expected token, or disabled if the network is trusted")
    if environment.get(TOKEN):
        return ""
    path = Path(environment.get(TOKEN_PATH) or home / ".ray" / "auth_token")
    if not path.is_file() or not path.read_text().strip():
        raise ValueError(
            f"the cluster at {address} is not on this machine, and there is no token for it in {path}; copy the "
            f"cluster's token there, name another file in {TOKEN_PATH}, or make one: ray get-auth-token --generate"
        )
    return ""
