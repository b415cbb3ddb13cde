"""Every test process sees eight virtual CPU devices, and compiles as fast as XLA can.

Compilation is most of the suite's time.  Without LLVM's optimisations and the fusion emitters, which
write LLVM code by way of MLIR, a train step compiles in a seventh of the time.  Golden tests, whose bits
depend on it, start processes with flags of their own.  What one process has compiled the others load.
The longest files begin: they would keep one process busy while the other has nothing left.  XLA reads
the flags when its backend starts.  Processes that tests start inherit them, as do the workers of
pytest-xdist.
"""

import atexit
import logging
import os
import shutil
import tempfile

import pytest

os.environ["XLA_FLAGS"] = " ".join(
    (
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
        os.environ.get("XLA_FLAGS", ""),
    )
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="poet_tests_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

LONGEST = (
    # Of the tests marked fault.
    "test_faults.py",
    "test_faults_at_gs.py",
    # Of the others.
    "test_conditions_are_obeyed.py",
    "test_tokenizer_training.py",
    "test_sound_run.py",
    "test_superres_run.py",
    "test_audio_training.py",
    "test_decode.py",
    "test_runner.py",
    "test_tokenizer_runs.py",
    "test_golden.py",
    "test_written_before.py",
    "test_sampler.py",
    "test_step.py",
    "test_discriminator.py",
    "test_export_sound.py",
    "test_transformer.py",
    "test_base.py",
    "test_processes.py",
)

# Without these flags Chromium asks for services outside this machine, and does not start as root.
CHROMIUM_FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync "
    "--disable-component-update"
).split()


def pytest_collection_modifyitems(items):
    """Tests of the longest files first; the others stay in their order."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONGEST)))


@pytest.fixture(autouse=True)
def terminal_is_left():
    """Commands that ran in this process log to the terminal of their test, which is closed for the tests after it."""
    yield
    root = logging.getLogger()
    for handler in [h for h in root.handlers if not type(h).__module__.startswith("_pytest")]:
        root.removeHandler(handler)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium of playwright.  Its event loop runs in this thread, so that no other file may see it."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[browser]'")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as running:
        found = running.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        yield found
        found.close()
