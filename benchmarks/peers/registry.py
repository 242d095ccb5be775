"""How each peer is installed, set up and started. Versions are pinned: these were tried."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Final

from benchmarks.contenders import ROOT, Contender, Launch
from benchmarks.dialects import Recurra
from benchmarks.peers.dialects import Mosec, OpenInference, TorchServe
from benchmarks.processes import free_port
from benchmarks.venvs import UnavailableError, environment

_SERVERS: Final = Path(__file__).parent / "servers"
_RUNTIME: Final = ("numpy", "onnxruntime")
TRITON: Final = "Triton (pytriton)"


def peers(model: Path) -> list[Contender]:
    """All peers, serving a model."""
    model = model.absolute()
    return [
        Contender("mosec", Mosec(), lambda port: _mosec(model, port)),
        triton(model),
        Contender("MLServer", OpenInference("stream", correlated=False), lambda port: _mlserver(model, port)),
        Contender("KServe", OpenInference("unary"), lambda port: _kserve(model, port)),
        Contender("TorchServe", TorchServe(), lambda port: _torchserve(model, port)),
        Contender("Ray Serve", Recurra(), lambda port: _ray(model, port)),
    ]


def triton(model: Path) -> Contender:
    """Triton's server by itself."""
    model = model.absolute()
    return Contender(TRITON, OpenInference("stream", wrapped=True), lambda port: _triton(model, port))


def triton_libraries() -> Path:
    """The folder of the libraries that tritonserver's wheel brings.

    Raises:
        UnavailableError: It cannot be installed.
    """
    return _site_packages(_triton_programs()) / "nvidia_pytriton.libs"


def _triton_programs() -> Path:
    return environment("triton", ("nvidia-pytriton==0.7.0", *_RUNTIME))


def _mosec(model: Path, port: int) -> Launch:
    programs = environment("mosec", ("mosec==0.9.8", *_RUNTIME))
    command = [programs / "python", _SERVERS / "mosec_server.py", "--port", str(port), "--address", "127.0.0.1"]
    return Launch([*command, "--timeout", "60000"], _env(programs, model))


def _triton(model: Path, port: int) -> Launch:
    """The tritonserver in pytriton's wheel, driven directly: pytriton's own proxy has no sequences."""
    programs = _triton_programs()
    site = _site_packages(programs)
    triton = site / "pytriton" / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    repository = _fresh(programs.parent / "repository")
    _copy(_SERVERS / "triton_model.py", repository / "lstm" / "1" / "model.py")
    _copy(_SERVERS / "state.py", repository / "lstm" / "1")
    _copy(triton / "python_backend_stubs" / version / "triton_python_backend_stub", triton / "backends" / "python")
    (repository / "lstm" / "config.pbtxt").write_text(_TRITON_CONFIG)
    command = [
        triton / "bin" / "tritonserver", f"--model-repository={repository}",
        f"--backend-directory={triton / 'backends'}", f"--grpc-port={port}", "--grpc-address=127.0.0.1",
        "--allow-http=false", "--allow-metrics=false", "--log-info=false",
    ]  # fmt: skip
    python = Path(sys.base_prefix)
    libraries = f"{site / 'nvidia_pytriton.libs'}:{python / 'lib'}"
    env = _env(programs, model, site) | {"LD_LIBRARY_PATH": libraries, "PYTHONHOME": str(python)}
    return Launch(command, env)


_TRITON_CONFIG: Final = """
name: "lstm"
backend: "python"
max_batch_size: 64
input [{ name: "x" data_type: TYPE_FP32 dims: [16] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [1] }]
instance_group [{ count: 1 kind: KIND_CPU }]
sequence_batching {
  max_sequence_idle_microseconds: 600000000
  oldest { max_candidate_sequences: 4096 }
}
"""


def _mlserver(model: Path, port: int) -> Launch:
    programs = environment("mlserver", ("mlserver==1.7.1", *_RUNTIME))
    folder = _fresh(programs.parent / "model")
    settings = {
        "grpc_port": port, "http_port": free_port(), "metrics_port": free_port(), "host": "127.0.0.1",
        "parallel_workers": 0, "gzip_enabled": False, "debug": False,
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps({"name": "lstm", "implementation": "mlserver_model.Step"}))
    return Launch([programs / "mlserver", "start", folder], _env(programs, model))


def _kserve(model: Path, port: int) -> Launch:
    programs = environment("kserve", ("kserve==0.21.0", *_RUNTIME))
    command = [programs / "python", _SERVERS / "kserve_server.py", str(port), str(free_port())]
    return Launch(command, _env(programs, model))


def _torchserve(model: Path, port: int) -> Launch:
    if shutil.which("java") is None:
        raise UnavailableError("needs Java 11 or newer, and there is no `java` on the path")
    requirements = ("torchserve==0.12.0", "torch==2.13.0", "packaging", "pyyaml", "psutil", "setuptools<81")
    programs = environment("torchserve", (*requirements, *_RUNTIME))
    folder = _fresh(programs.parent / "store")
    archive = folder / "lstm"  # a folder serves as well as an archive
    _copy(_SERVERS / "torchserve_handler.py", archive / "torchserve_handler.py")
    manifest = {"runtime": "python", "model": {"modelName": "lstm", "handler": "torchserve_handler.py",
                "modelVersion": "1.0", "configFile": "model-config.yaml"}, "archiverVersion": "0.12.0"}  # fmt: skip
    (archive / "MAR-INF").mkdir()
    (archive / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))
    (archive / "model-config.yaml").write_text(_TORCHSERVE_MODEL)
    addresses = {
        "inference_address": free_port(), "management_address": free_port(), "metrics_address": free_port(),
    }  # fmt: skip
    lines = [
        *(f"{name}=http://127.0.0.1:{number}" for name, number in addresses.items()),
        f"grpc_inference_port={port}", "grpc_inference_address=127.0.0.1",
        "grpc_management_address=127.0.0.1", f"grpc_management_port={free_port()}", f"model_store={folder}",
        f"load_models={archive}", "disable_token_authorization=true",
        "enable_model_api=true", "default_workers_per_model=1",
    ]  # fmt: skip
    (folder / "config.properties").write_text("\n".join(lines) + "\n")
    (folder / "log4j2.xml").write_text(_QUIET)  # it would log every batch
    command = [programs / "torchserve", "--foreground", "--log-config", folder / "log4j2.xml",
               "--model-store", folder, "--models", f"lstm={archive}",
               "--ts-config", folder / "config.properties", "--disable-token-auth"]  # fmt: skip
    # Its "already running" is a file in the folder for temporary files.
    return Launch(command, _env(programs, model) | {"TMPDIR": str(folder)}, programs.parent)


_QUIET: Final = """<Configuration>
<Appenders><Console name="out"><PatternLayout pattern="%level %msg%n"/></Console></Appenders>
<Loggers><Root level="error"><AppenderRef ref="out"/></Root></Loggers>
</Configuration>
"""

_TORCHSERVE_MODEL: Final = """
minWorkers: 1
maxWorkers: 1
batchSize: 64
maxNumSequence: 256
sequenceBatching: true
continuousBatching: true
maxBatchDelay: 1
sequenceMaxIdleMSec: 600000
sequenceTimeoutMSec: 600000
jobQueueSize: 100
"""


def _ray(model: Path, port: int) -> Launch:
    """With our own messages: any service may be served."""
    programs = environment("ray", ("ray[serve]==2.60.0", "grpcio==1.85.1", "googleapis-common-protos", *_RUNTIME))
    command = [programs / "python", _SERVERS / "ray_server.py", str(port), str(free_port()), str(model)]
    env = _env(programs, model, ROOT / "proto") | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
    return Launch(command, env)


def _env(programs: Path, model: Path, *more: Path) -> dict[str, str]:
    """What the servers find `state.py` and the model by."""
    return {
        "PATH": f"{programs}:{os.environ.get('PATH', '')}",
        "PYTHONPATH": ":".join(str(folder) for folder in (_SERVERS, *more)),
        "VIRTUAL_ENV": str(programs.parent),
        "BENCH_MODEL": str(model),
    }


def _site_packages(programs: Path) -> Path:
    return next((programs.parent / "lib").glob("python*")) / "site-packages"


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _copy(source: Path, target: Path) -> None:
    """Copy a file into a folder; the old one may still be running."""
    target.parent.mkdir(parents=True, exist_ok=True)
    (target / source.name if target.is_dir() else target).unlink(missing_ok=True)
    shutil.copy(source, target)
