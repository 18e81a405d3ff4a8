"""`trl` answered by fastrl: one object for each module and class, in this process and children."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.resources
import importlib.util
import os
import pickle
import subprocess
import sys
import types
import warnings

import pytest
from packaging.version import Version

import fastrl
from fastrl.compat import as_trl, missing
from fastrl.compat.as_trl import install_as_trl, uninstall_as_trl


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """Each test begins and ends without `trl`."""
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.delenv("FASTRL_API", raising=False)
    uninstall_as_trl()
    yield
    uninstall_as_trl()


@pytest.fixture
def trl():
    install_as_trl()
    import trl

    return trl


# --- one object under two names ------------------------------------------------------------------
@pytest.mark.parametrize(
    "path", ["core", "trainer", "trainer.utils", "models", "models.modeling_value_head", "rewards"]
)
def test_a_module_is_the_same_object_under_both_names(trl, path):
    ours = importlib.import_module(f"fastrl.{path}")
    spec = ours.__spec__
    assert importlib.import_module(f"trl.{path}") is ours is sys.modules[f"trl.{path}"]
    assert ours.__spec__ is spec and spec.name == f"fastrl.{path}"
    parent, _, name = f"trl.{path}".rpartition(".")
    assert getattr(sys.modules[parent], name) is ours


def test_import_statements(trl):
    import trl.trainer.utils as utils
    from trl import PPOConfig, trainer
    from trl.trainer.ppo_config import PPOConfig as same

    assert PPOConfig is same is fastrl.PPOConfig is trl.PPOConfig
    assert utils is trainer.utils is trl.trainer.utils
    assert trl.__all__ == fastrl.__all__  # what `from trl import *` asks for
    assert {"PPOConfig", "__version__"} <= set(dir(trl))


def test_trl_is_a_module_of_its_own(trl, monkeypatch):
    monkeypatch.setattr(trl, "PPOConfig", "patched", raising=False)
    from trl import PPOConfig

    assert PPOConfig == "patched" and fastrl.PPOConfig != "patched"
    assert importlib.reload(trl) is trl is sys.modules["trl"]


def test_names_that_are_not_there(trl):
    with pytest.raises(ImportError, match="did you mean 'LengthSampler'"):
        from trl.core import LengthSample  # noqa: F401
    with pytest.raises(ImportError, match="Nope"):
        from trl import Nope  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match="module 'trl' has no attribute 'nope'"):
        import trl.nope
    assert not hasattr(trl, "nope")
    assert importlib.util.find_spec("trl.nope") is None


@pytest.mark.parametrize(
    ("line", "kind", "said"),
    [
        ("from trl import {0}", ImportError, "module 'trl' has no attribute '{0}': {2}"),
        ("import trl.{1}", ModuleNotFoundError, "'trl.{1}': module 'trl' has no .* '{1}': {2}"),
        (
            "import trl.trainer.{1}",
            ModuleNotFoundError,
            "'trl.trainer.{1}': module 'trl.trainer' has no attribute '{1}': {2}",
        ),
        ("from trl.trainer.{1} import {0}", ModuleNotFoundError, "'trl.trainer.{1}': .*: {2}"),
    ],
)
def test_names_that_are_not_there_yet_are_explained(trl, monkeypatch, line, kind, said):
    names = ("WaitTrainer", "wait_trainer", "Waiting is not there yet")
    monkeypatch.setitem(missing._LATER, "Wait", "Waiting")
    monkeypatch.setitem(missing._LATER_MODULES, "wait", "Waiting")
    with pytest.raises(ImportError, match=said.format(*names)) as error:
        exec(line.format(*names), {})
    assert type(error.value) is kind
    assert error.value.name == {ImportError: "trl"}.get(kind, line.format(*names).split()[1])


# --- what is asked about a package ---------------------------------------------------------------
@pytest.mark.parametrize(
    ("api", "release"),
    [("0.7", "0.7.11"), ("0.11", "0.11.4"), ("1", "1.16.0"), (None, "1.16.0")],
)
def test_version_is_that_of_the_pinned_api(trl, monkeypatch, api, release):
    if api is not None:
        monkeypatch.setenv("FASTRL_API", api)
    assert trl.__version__ == release == importlib.metadata.version("trl")
    assert Version(fastrl.__version__) < Version("0.7")  # stays fastrl's own
    assert importlib.metadata.version("fastrl") == fastrl.__version__


def test_set_api_counts_at_once(trl):
    from fastrl import set_api

    try:
        set_api("0.7")
        assert trl.__version__ == importlib.metadata.version("trl") == "0.7.11"
    finally:
        set_api(None)
    assert trl.__version__ == "1.16.0"


def test_probes_find_a_package():
    assert importlib.util.find_spec("trl") is None
    install_as_trl()
    assert importlib.util.find_spec("trl").origin == fastrl.__file__
    assert importlib.metadata.metadata("trl")["Name"] == "trl"
    assert importlib.metadata.packages_distributions()["trl"] == ["trl"]
    assert "trl" in {found.metadata["Name"] for found in importlib.metadata.distributions()}
    assert importlib.metadata.version("packaging")  # others are found as before
    from transformers.utils.import_utils import _is_package_available

    found = _is_package_available("trl", return_version=True)
    assert tuple(found) == (True, "1.16.0")


def test_resources_are_fastrls(trl):
    files = importlib.resources.files("trl")
    assert (files / "py.typed").is_file()
    assert str(files) == str(importlib.resources.files("fastrl"))
    inner = importlib.resources.files("trl.models") / "reference.py"
    assert "create_reference_model" in inner.read_text(encoding="utf-8")


def test_launch_configurations_are_resources(trl):
    folder = importlib.resources.files("trl.accelerate_configs")
    assert "zero_stage: 3" in (folder / "zero3.yaml").read_text(encoding="utf-8")


def test_code_for_dash_m(trl):
    spec = importlib.util.find_spec("trl.cli.plot")
    code = spec.loader.get_code("trl.cli.plot")
    assert code.co_filename.endswith(os.path.join("fastrl", "cli", "plot.py"))


# --- pickles -------------------------------------------------------------------------------------
def test_pickles_cross_between_the_names(trl):
    from trl.core import LengthSampler
    from trl.trainer.ppo_config import PPOConfig

    ours = pickle.dumps([PPOConfig, LengthSampler])
    assert b"trl.trainer" not in ours and b"fastrl" in ours
    theirs = b"ctrl.trainer.ppo_config\nPPOConfig\n."  # as TRL itself wrote it
    assert pickle.loads(theirs) is fastrl.PPOConfig
    uninstall_as_trl()
    assert pickle.loads(ours) == [fastrl.PPOConfig, LengthSampler]
    with pytest.raises(ModuleNotFoundError):
        pickle.loads(theirs)


# --- another trl ---------------------------------------------------------------------------------
def test_another_trl_that_is_imported_is_an_error(monkeypatch):
    other = types.ModuleType("trl")
    other.__file__ = "/elsewhere/trl/__init__.py"
    monkeypatch.setitem(sys.modules, "trl", other)
    finders = list(sys.meta_path)
    with pytest.raises(ImportError, match="too late: `trl` has been imported from /elsewhere/trl"):
        install_as_trl()
    assert sys.meta_path == finders and sys.modules["trl"] is other
    assert os.environ["PYTHONPATH"] == ""


def test_another_trl_that_is_installed_is_passed_over(monkeypatch, tmp_path):
    (tmp_path / "trl").mkdir()
    (tmp_path / "trl" / "__init__.py").write_text("mine = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.warns(UserWarning, match=rf"not the package at {tmp_path}"):
        install_as_trl()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        install_as_trl()  # said once
    import trl

    assert trl.PPOConfig is fastrl.PPOConfig and not hasattr(trl, "mine")
    uninstall_as_trl()
    assert importlib.import_module("trl").mine == 1
    del sys.modules["trl"]


# --- installing and uninstalling -----------------------------------------------------------------
def test_twice_is_once_and_all_of_it_is_undone(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/a", "/b"]))
    finders = list(sys.meta_path)
    install_as_trl()
    install_as_trl()
    assert len(sys.meta_path) == len(finders) + 1
    first, *rest = os.environ["PYTHONPATH"].split(os.pathsep)
    assert rest == ["/a", "/b"] and os.listdir(first)
    import trl.core  # noqa: F401

    uninstall_as_trl()
    assert sys.meta_path == finders
    assert os.environ["PYTHONPATH"] == os.pathsep.join(["/a", "/b"])
    assert not [name for name in sys.modules if name.split(".")[0] == "trl"]
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("trl")
    uninstall_as_trl()


def test_children_may_be_left_alone():
    install_as_trl(children=False)
    assert os.environ["PYTHONPATH"] == ""


def test_it_is_light():
    assert fastrl.install_as_trl is as_trl.install_as_trl
    words = "import sys, fastrl; fastrl.install_as_trl(); import trl.core"
    probe = f"{words}; print(sorted({{'torch', 'transformers'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


# --- children ------------------------------------------------------------------------------------
REPORT = """
import importlib.metadata, importlib.util, sys
found = importlib.metadata.version("trl"), importlib.util.find_spec("trl") is not None
import trl.core, fastrl.core
print(*found, trl.core is fastrl.core, "torch" in sys.modules)
"""


def of_child(*words, **more):
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_subprocesses_answer_too(monkeypatch, tmp_path):
    install_as_trl()
    monkeypatch.setenv("FASTRL_API", "0.11")
    assert of_child("-c", REPORT, cwd=tmp_path) == "0.11.4 True True False"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {REPORT!r}])"
    assert of_child("-c", nested) == "0.11.4 True True False"
    uninstall_as_trl()
    assert of_child("-c", "import importlib.util as u; print(u.find_spec('trl'))") == "None"


@pytest.mark.slow
def test_the_sitecustomize_that_is_hidden_runs_as_well(monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.seen = __file__\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    install_as_trl()
    report = "import sys, trl; print(sys.seen, sys.modules['sitecustomize'].__file__)"
    own = str(tmp_path / "sitecustomize.py")
    assert of_child("-c", report) == f"{own} {own}"


@pytest.mark.slow
def test_spawned_and_launched_processes_answer_too(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, sys\n"
        "def work(number):\n"
        "    import trl.core, fastrl.core\n"
        "    return number, trl.core is fastrl.core, trl.__version__\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.apply(work, (3,)))\n"
    )
    install_as_trl()
    expected = "(3, True, '1.16.0')"
    assert of_child(str(script)) == expected
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    assert of_child(*launch, str(script)) == expected
