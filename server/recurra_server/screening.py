"""Which versions of a model repository can be served: each is tried in another process before it is loaded here."""

import contextlib
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType

import structlog

from recurra_server.engine.errors import ModelRefusedError, one_line
from recurra_server.rpc.models import ModelKey
from recurra_server.runtimes.rehearsal import rehearse
from recurra_server.runtimes.repository import ModelFile
from recurra_server.settings import Settings

_log = structlog.get_logger(__name__)


async def screen(
    settings: Settings,
    files: Sequence[ModelFile],
    *,
    excluded: Collection[ModelKey] = (),
    verdicts: Mapping[ModelKey, str] = MappingProxyType({}),
    going_on: Callable[[], object] = lambda: None,
) -> AsyncGenerator[tuple[ModelFile, str, str]]:
    """Try versions. While the caller is busy with one, the next is tried already.

    Args:
        settings: How to serve.
        files: The versions.
        excluded: Those that are passed over.
        verdicts: Those that need not be tried any more, and why they cannot be used.
        going_on: Called whenever a version is come to: to be read, and then to be tried and passed to the caller.

    Yields:
        Each version, its digest, and why it cannot be used; empty where it can. One that cannot be read is logged.
    """
    known = []
    for file in files:
        going_on()
        with log_if_refused(file):
            known.append((file, digest_of(file)))
    known = [(file, digest) for file, digest in known if (file.name, file.version, digest) not in excluded]
    new = [file for file, digest in known if (file.name, file.version, digest) not in verdicts]
    async with contextlib.aclosing(rehearse_all(settings, new)) as new_verdicts:
        for file, digest in known:
            going_on()
            key = (file.name, file.version, digest)
            yield file, digest, verdicts[key] if key in verdicts else await anext(new_verdicts)


def rehearse_all(settings: Settings, files: Sequence[ModelFile]) -> AsyncGenerator[str]:
    """Try versions; see `rehearse`."""
    paths = [file.path for file in files]
    sessions, seconds = settings.limits.max_batch_size, settings.load_seconds
    return rehearse(paths, sessions=sessions, seconds=seconds, operators=settings.operators)


def digest_of(file: ModelFile) -> str:
    """See `ModelFile.digest`.

    Raises:
        ModelRefusedError: A file cannot be read.
    """
    try:
        return file.digest()
    except Exception as error:
        raise refusal(f"its files cannot be read: {one_line(error)}", file) from None


def refusal(why: str, file: ModelFile) -> ModelRefusedError:
    """Why a version is not loaded, as its caller is told."""
    return ModelRefusedError(why, model=file.name, version=file.version)


def refuse_if(why: str, file: ModelFile) -> None:
    """Refuse a version if there is a reason to.

    Raises:
        ModelRefusedError: There is.
    """
    if why:
        raise refusal(why, file)


@contextlib.contextmanager
def log_if_refused(file: ModelFile) -> Iterator[None]:
    """Log why a version is not loaded, and go on without it."""
    try:
        yield
    except ModelRefusedError as error:
        _log.error("model_not_loaded", model=file.name, version=file.version, why=error.message)
