"""``luthier studio``: the whole way in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from luthier.cli.console import err, out, print_json
from luthier.errors import UsageError

if TYPE_CHECKING:
    from luthier.studio.settings import StudioSettings

Flag = Annotated[bool, Parameter(negative="")]
NEEDS = ("fastapi", "uvicorn", "websockets")


def studio(
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    allowed_host: tuple[str, ...] = (),
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    allow_insecure_http: Flag = False,
    data_root: tuple[Path, ...] = (),
    link: Flag = False,
    json: Flag = False,
) -> None:
    """The studio: models, data, runs, proofs and exports as web pages on this machine. Ctrl-C stops it.

    Runs go on when it stops; a run started by a command is shown like any other.

    Parameters
    ----------
    host
        Address to listen on; others than this machine's own need --tls-cert and --allowed-host.
    port
        Port to listen on; 0 takes a free one.
    allowed_host
        Name or address under which other machines reach it; may be given again.
    tls_cert
        Certificate (PEM) to serve HTTPS with.
    tls_key
        Its key.
    allow_insecure_http
        Listen beyond this machine without TLS, where something else encrypts.
    data_root
        Folder whose data files may be named in the studio; may be given again.
    link
        Print a new login link for a studio that is running, and leave.
    json
        Print one JSON object once the studio answers.
    """
    from importlib.util import find_spec

    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"the studio needs {', '.join(missing)}", hint="pip install 'luthier[studio]' (or make studio)"
        )
    if (tls_cert is None) != (tls_key is None):
        raise UsageError("a certificate and its key go together", hint="give both --tls-cert and --tls-key")
    from luthier.studio.listen import login_link, serve, settings_for

    settings = settings_for(
        host,
        port,
        names=allowed_host,
        certificate=tls_cert,
        insecure=allow_insecure_http,
        data_roots=data_root,
    )
    if link:
        print_json({"link": login_link(settings)}) if json else out().print(
            login_link(settings), soft_wrap=True
        )
        return

    def ready(settings: StudioSettings) -> None:
        if json:
            print_json({"link": login_link(settings), "port": settings.port, "runs": str(settings.runs)})
            return
        out().print(f"Studio over {settings.runs}. Ctrl-C stops it; runs go on.", soft_wrap=True)
        out().print(
            "Log in with this link, once, within ten minutes (`luthier studio --link` gives another):"
        )
        out().print(f"\n  {login_link(settings)}\n", soft_wrap=True, highlight=False, markup=False)

    serve(settings, ready=ready, certificate=tls_cert, key=tls_key)
    if not json:
        err().print("stopped")
