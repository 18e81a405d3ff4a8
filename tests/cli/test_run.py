"""`fastrl run`: what a script sees, what comes out of it, and scripts of three eras."""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
import traceback
import zipfile
from pathlib import Path

import pytest
import torch

from fastrl.cli import launch, run
from fastrl.cli.main import main
from fastrl.compat.as_trl import uninstall_as_trl
from fastrl.compat.transformers_patch import restore_transformers

OLD = Path(__file__).parent / "old_scripts"
REPORT = """
import json, sys
import trl.core, fastrl.core, transformers
with open(sys.argv[1], "w") as file:
    json.dump({
        "name": __name__, "file": __file__, "argv": sys.argv, "first": sys.path[0],
        "package": __package__, "spec": __spec__ and __spec__.name,
        "main": sys.modules["__main__"].__dict__ is globals(),
        "same": trl.core is fastrl.core, "old": hasattr(transformers, "AdamW"),
    }, file)
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """What a script changes in its process is put back, and no launcher's variables are set."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    monkeypatch.setenv("PYTHONPATH", "")
    for variable in launch.LAUNCHED:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(launch, "_default_config", lambda: False)
    yield
    restore_transformers()
    uninstall_as_trl()


@pytest.fixture
def write(tmp_path):
    """write(source, name): the path of a script."""

    def put(source, name="script.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        return str(path)

    return put


def report_of(tmp_path, *words):
    out = tmp_path / "report.json"
    assert main(["run", *words, str(out), "--flag", "x"]) == 0
    seen = json.loads(out.read_text())
    assert seen["argv"][1:] == [str(out), "--flag", "x"]
    assert seen["name"] == "__main__" and seen["main"] and seen["same"] and seen["old"]
    return seen


# --- what the script sees ------------------------------------------------------------------------
def test_a_script_sees_what_python_shows_it(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(REPORT, "real/script.py")
    (tmp_path / "link.py").symlink_to(tmp_path / "real" / "script.py")
    seen = report_of(tmp_path, "link.py")
    assert (seen["file"], seen["argv"][0]) == (str(tmp_path / "link.py"), "link.py")
    assert seen["first"] == str(tmp_path / "real")  # python follows links
    assert (seen["package"], seen["spec"]) == (None, None)


def test_neighbours_are_imported(write):
    write("VALUE = 5\n", "neighbour_of_script.py")
    path = write("import neighbour_of_script\nassert neighbour_of_script.VALUE == 5\n")
    assert run.run([path]) == 0
    del sys.modules["neighbour_of_script"]


def test_a_module_is_run_from_the_working_directory(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(REPORT, "packed/inner.py")
    write("", "packed/__init__.py")
    main_path = write(REPORT, "packed/__main__.py")
    seen = report_of(tmp_path, "-m", "packed.inner")
    assert (seen["spec"], seen["package"], seen["file"]) == ("packed.inner", "packed", path)
    assert seen["argv"][0] == path and seen["first"] == str(tmp_path)
    seen = report_of(tmp_path, "--module", "packed")
    assert (seen["spec"], seen["argv"][0]) == ("packed.__main__", main_path)
    for name in ("packed", "packed.inner"):
        sys.modules.pop(name, None)


def test_the_path_of_a_script_outlives_a_change_of_folder(write, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    write(
        "import os\nos.chdir('elsewhere')\nassert os.path.isfile(__file__)\nf = lambda: 1\n"
        "assert os.path.isfile(f.__code__.co_filename) and os.path.isfile(__loader__.path)\n"
    )
    assert run.run(["./script.py"]) == 0


def test_folders_and_archives(write, tmp_path, monkeypatch):
    folder = str(Path(write(REPORT, "folder/__main__.py")).parent)
    monkeypatch.chdir(tmp_path)
    seen = report_of(tmp_path, "folder")
    assert (seen["first"], seen["argv"][0], seen["spec"]) == (folder, "folder", "__main__")
    assert seen["file"] == os.path.join(folder, "__main__.py")
    archive = str(tmp_path / "archive.zip")
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("__main__.py", REPORT)
    seen = report_of(tmp_path, archive)
    assert (seen["first"], seen["file"]) == (archive, os.path.join(archive, "__main__.py"))


def test_functions_of_the_script_pickle(write):
    source = "import pickle\ndef f(): return 3\nassert pickle.loads(pickle.dumps(f)) is f\n"
    assert run.run([write(source)]) == 0


def test_old_spellings_of_transformers_are_for_scripts_only(write):
    import transformers

    assert run.run([write("from transformers import AdamW, AutoModelForVision2Seq\n")]) == 0
    restore_transformers()
    assert not hasattr(transformers, "AdamW")


# --- what comes out of it ------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("line", "code"), [("sys.exit(7)", 7), ("sys.exit()", None), ("sys.exit('no')", "no")]
)
def test_exit_status(write, line, code):
    with pytest.raises(SystemExit) as stopped:
        run.run([write(f"import sys\n{line}\n")])
    assert stopped.value.code == code


def shown(error):
    """What python prints of an error that nobody catches."""
    screen = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", screen)
        sys.excepthook(type(error.value), error.value, error.value.__traceback__)
    return screen.getvalue()


def test_tracebacks_begin_in_the_script(write):
    path = write("def inner():\n    raise ValueError('boo')\n\n\ninner()\n")
    with pytest.raises(ValueError, match="boo") as error:
        run.run([path])
    text = shown(error)
    assert text.startswith(f'Traceback (most recent call last):\n  File "{path}", line 5, in <mod')
    assert text.count("  File ") == 2 and text.endswith("\nValueError: boo\n")


def test_a_script_that_is_no_python_has_no_traceback(write):
    path = write("x = \n")
    with pytest.raises(SyntaxError) as error:
        run.run([path])
    assert shown(error).startswith(f'  File "{path}", line 1\n')


def test_interrupts_come_through(write):
    with pytest.raises(KeyboardInterrupt) as error:
        run.run([write("raise KeyboardInterrupt\n")])
    assert "fastrl" not in shown(error)


def test_an_excepthook_of_the_scripts_own_is_used(write):
    source = "import sys\nsys.excepthook = lambda *got: print('mine', got[0].__name__)\n1 / 0\n"
    with pytest.raises(ZeroDivisionError) as error:
        run.run([write(source)])
    frames = traceback.extract_tb(error.value.__traceback__)
    assert any("run.py" in frame.filename for frame in frames)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *words: seen.append(words))
        sys.excepthook(ZeroDivisionError, error.value, error.value.__traceback__)
    assert seen == [("mine", "ZeroDivisionError")]
    frames = traceback.extract_tb(error.value.__traceback__)
    assert [Path(frame.filename).name for frame in frames] == ["script.py"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nowhere.py"], 2, "nowhere.py': [Errno 2]"),
        (["-m", "no_such_module_here"], 1, "no module named no_such_module_here"),
        (["-m", "no_such_package.inner"], 1, "No module named 'no_such_package'"),
        (["-m", "fastrl.models"], 1, "no module named fastrl.models.__main__"),
        ([], 2, "SCRIPT"),
        (["--no_such_flag", "s.py"], 2, "--no_such_flag"),
        (["--num_processes"], 2, "expected one argument"),
        (["--accelerate_config", "zero9", "s.py"], 2, "did you mean 'zero"),
    ],
)
def test_command_lines_that_are_wrong(capsys, words, code, message):
    with pytest.raises(SystemExit) as stopped:
        main(["run", *words])
    text = capsys.readouterr().err
    if isinstance(stopped.value.code, str):
        text, found = stopped.value.code, 1  # as python does with a text
    else:
        found = stopped.value.code
    assert found == code and message in text


# --- several processes ---------------------------------------------------------------------------
@pytest.fixture
def launched(monkeypatch):
    """What accelerate got."""
    got = []
    monkeypatch.setattr("accelerate.commands.launch.launch_command", got.append)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    return got


def test_several_processes_each_run_the_script(launched):
    words = ["--accelerate_config", "multi_gpu", "script.py", "--num_processes", "9", "-m"]
    assert main(["run", *words]) == 0
    (args,) = launched
    assert (args.module, args.training_script, args.num_processes) == (True, "fastrl.cli.run", 2)
    assert args.training_script_args == ["script.py", "--num_processes", "9", "-m"]
    assert args.config_file == str(launch.config_file("multi_gpu"))


def test_flags_of_accelerate_come_before_the_script(launched):
    assert (
        main(["run", "--num_processes=3", "--main_process_port", "7", "-m", "pack.age", "x"]) == 0
    )
    (args,) = launched
    assert (args.num_processes, args.main_process_port) == (3, 7)
    assert args.training_script_args == ["-m", "pack.age", "x"]
    importlib.import_module(args.training_script)


def test_a_launched_process_takes_no_flags_of_the_launcher(launched, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(SystemExit):
        main(["run", "--num_processes", "2", "script.py"])
    assert "--num_processes belongs to the launcher" in capsys.readouterr().err
    assert launched == []


def test_one_process_needs_no_launcher(launched, monkeypatch, write, tmp_path):
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    report_of(tmp_path, "--accelerate_config", "single_gpu", write(REPORT))
    assert launched == []


# --- in processes of their own -------------------------------------------------------------------
def fastrl_run(*words, **more):
    command = [sys.executable, "-m", "fastrl", "run", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, **more)


@pytest.mark.slow
def test_status_and_traceback_are_pythons(write):
    path = write("import sys\ndef f():\n    raise ValueError(sys.argv[1])\nf()\n")
    ours = fastrl_run(path, "boo")
    theirs = subprocess.run([sys.executable, path, "boo"], capture_output=True, text=True)
    assert (ours.returncode, ours.stderr, ours.stdout) == (1, theirs.stderr, "")
    stopped = write("raise KeyboardInterrupt\n")
    ours = fastrl_run(stopped)
    theirs = subprocess.run([sys.executable, stopped], capture_output=True, text=True)
    assert (ours.returncode, ours.stderr) == (theirs.returncode, theirs.stderr)


@pytest.mark.slow
def test_environment_set_before_an_import_counts_and_children_are_patched(write):
    path = write(
        "import os, sys\n"
        "assert not {'torch', 'transformers', 'huggingface_hub'} & sys.modules.keys()\n"
        "os.environ['HF_HOME'] = '/set/by/the/script'\n"
        "from transformers import AdamW\n"
        "from huggingface_hub import constants\n"
        "if __name__ == '__main__':\n"
        "    assert constants.HF_HOME == '/set/by/the/script'\n"
        "    import subprocess\n"
        "    child = 'from transformers import AdamW; import trl.core; print(trl.core.__name__)'\n"
        "    print(subprocess.run([sys.executable, '-c', child], capture_output=True).stdout)\n"
    )
    done = fastrl_run(path)
    assert done.stdout == "b'fastrl.core\\n'\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_launched_scripts_answer_too(write, tmp_path, launcher):
    out = tmp_path / "rank"
    path = write(
        "import os, sys, trl.core, fastrl.core\n"
        "open(sys.argv[1] + os.environ.get('RANK', ''), 'w').write(str(trl.core is fastrl.core))\n"
        "sys.exit(int(sys.argv[2]))\n"
    )
    if launcher == "accelerate":
        assert fastrl_run("--cpu", path, out, 3).returncode == 3
        assert out.read_text() == "True"
        return
    words = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "fastrl", "run", path]
    subprocess.run([sys.executable, *words, str(out), "0"], check=True, capture_output=True)
    assert [Path(f"{out}{rank}").read_text() for rank in (0, 1)] == ["True", "True"]


def trained(name, *words):
    done = fastrl_run(OLD / f"{name}.py", *words)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.slow
def test_ppo_of_0_7(tiny, tmp_path):
    told = trained("ppo_0_7", *tiny, tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["trainer"] == "fastrl.algos.ppo"
    first, second = report["steps"]
    # Scores stand in the labels' order, whichever is the higher: the second is POSITIVE.
    assert first["labels"] == second["labels"] == ["POSITIVE"] * 4
    assert first["kl"] == pytest.approx(0, abs=1e-5) and second["kl"] != 0
    assert "use_auth_token= is token=" in told and "return_all_scores= is" in told


@pytest.mark.slow
def test_grpo_of_1_16(tiny, tmp_path):
    told = trained("grpo_1_16", tiny[0], tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["step"] == 2 and all(-1 <= reward <= 1 for reward in report["rewards"])
    assert "FutureWarning" not in told


def test_text_classification_of_transformers_4_38(tiny, tmp_path, monkeypatch):
    """The Trainer guide's line, its weighted loss of three labels, and noise that ends."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    monkeypatch.chdir(tmp_path)
    words = f"--model_name_or_path {tiny[1]} --task_name mrpc --do_train --do_eval "
    words += "--max_seq_length 40 --per_device_train_batch_size 8 --learning_rate 2e-2 "
    words += "--num_train_epochs 3 --output_dir out/mrpc/ --overwrite_output_dir "
    words += "--neftune_noise_alpha 0.1 --evaluation_strategy no --no_cuda"
    with pytest.warns(FutureWarning):
        assert run.run([str(OLD / "glue_4_38.py"), *words.split()]) == 0
    report = json.loads(Path("out/mrpc/report.json").read_text())
    at = report["noise"].index("trained")
    assert report["task"] == "mrpc" and report["noise"][:at] == [[True, True]] * 6
    assert report["noise"][at + 1 :] == [[False, False]]

    saved = AutoModelForSequenceClassification.from_pretrained("out/mrpc").eval()
    tokenizer = AutoTokenizer.from_pretrained("out/mrpc")
    total = weights = 0.0
    for n in range(17, 25):
        ids = tokenizer("ab" * n, return_tensors="pt").input_ids[:, :40]
        with torch.no_grad():
            logp = saved(ids).logits[0].log_softmax(-1)[n % 3].item()
        total, weights = total - (1 + n % 3) * logp, weights + 1 + n % 3
    assert report["eval_loss"] == pytest.approx(total / weights, rel=1e-4)
