"""`fastrl migrate`: what stays as it is, what is noted for a reader, and the command itself."""

from __future__ import annotations

import re

import pytest

from fastrl.cli.main import main
from fastrl.compat.migration import migrate


# --- what stays as it is -------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("source", "note"),
    [
        ("SFTTrainer('m', **more, tokenizer=tok)", r"stays as it is \(tokenizer=\): what \* and"),
        ("SFTTrainer('m', args=f(), packing=True)", "does not show args= being made by Training"),
        ("DPOTrainer('m', x, y, tokenizer=tok)", "pass what follows the model by name"),
        ("DPOTrainer('m', reference_free=True)", "a loss without a reference is CPO's or ORPO's"),
        ("SFTTrainer('m', model_init=make)", r"pass the model itself: model=model_init\(\)"),
        (
            "c = SFTConfig('o')\nlong = int('3')\nSFTTrainer('m', args=c, max_seq_length=long)",
            r"stays as it is \(max_seq_length=\): make them fields of the SFTConfig where it is",
        ),
        (
            "c = SFTConfig('o')\nSFTTrainer('m', args=c, packing=True)\nSFTTrainer('n', args=c)",
            "make them fields of the SFTConfig",
        ),
    ],
)
def test_calls_that_are_not_understood_stay(source, note):
    whole = f"from trl import DPOTrainer, SFTConfig, SFTTrainer\n{source}\n"
    migrated = migrate(whole)
    assert migrated.source == whole.replace("from trl", "from fastrl")
    ((line, text),) = migrated.notes
    assert line == 2 + source[: source.index("Trainer('m'")].count("\n")
    assert re.search(note, text), text


@pytest.mark.parametrize(
    ("field", "note"),
    [
        ("logging_dir='x'", "logging_dir= is left out, it has no effect"),
        ("past_index=3", "no longer takes past_index=: memory across batches is gone"),
        ("warmup_ratio=share", "warmup_ratio= is warmup_steps= with a number below 1"),
        ("warmup_ratio=10", "warmup_ratio=10: it is a share of all steps, from 0 to 1"),
        ("warmup_ratio='a'", "warmup_ratio= is warmup_steps= with a number below 1 ('<=' not"),
        ("eval_strategy='no', evaluation_strategy='no'", "eval_strategy= and its old name"),
    ],
)
def test_fields_that_need_a_reader(field, note):
    source = f"from transformers import TrainingArguments as TA\n\nargs = TA('out', {field})\n"
    migrated = migrate(source)
    ((line, text),) = migrated.notes
    assert line == 3 and note in text
    assert ("logging_dir" in migrated.source) is False
    if "logging_dir" not in field:
        assert migrated.source == source


@pytest.mark.parametrize(
    ("source", "note"),
    [
        ("from trl import DDPOTrainr", "DDPOTrainr"),
        ("from trl import SFTTrainer\nSFTTrainer('m', tokenizer=t)", "learned without EOS"),
        ("from trl import KTOTrainer\nKTOTrainer('m', tokenizer=t)", "prompts began with BOS"),
        ("from transformers import AdamW", "transformers.AdamW is gone: torch.optim.AdamW, whose"),
        ("import transformers\ntransformers.AdamW(p)", "transformers.AdamW is gone"),
        ("from transformers import pipeline\npipeline('x', return_all_scores=True)", "by its name"),
        ("import importlib.util as u\nu.find_spec('trl')", "find_spec('trl') asks for TRL"),
        ("from trl import __version__", "fastrl counts versions of its own"),
        ("import trl\nprint(trl.__version__)", "stands for its latest release now"),
        (
            "from transformers import AutoModel\n"
            "AutoModel.from_pretrained('a', load_in_8bit=x, torch_dtype=y, dtype=y)",
            "torch_dtype= is the old name of dtype=",
        ),
    ],
)
def test_what_a_reader_must_do_is_noted(source, note):
    notes = migrate(source).notes
    assert notes[0][0] == 1 + source.count("\n") and note in notes[0][1]


# --- the command ---------------------------------------------------------------------------------
OLD_CALL = "from trl import GRPOTrainer\n\nGRPOTrainer('m', tokenizer=tok, nothing=1)\n"


def test_the_diff_is_printed_and_nothing_written(tmp_path, capsys):
    path = tmp_path / "s.py"
    path.write_text(OLD_CALL)
    assert main(["migrate", str(path)]) == 0
    shown = capsys.readouterr()
    head, lines = shown.out.splitlines()[:3], shown.out.splitlines()[3:]
    assert head[:2] == [f"--- {path}", f"+++ {path}"] and head[2].startswith("@@ -1,3 +1,")
    new = "".join(f"{line[1:]}\n" for line in lines if line[0] in " +")
    old = "".join(f"{line[1:]}\n" for line in lines if line[0] in " -")
    assert (old, new) == (OLD_CALL, migrate(OLD_CALL).source)
    assert path.read_text() == OLD_CALL


def test_write_rewrites_files_and_again_finds_nothing(tmp_path, capsys):
    path = tmp_path / "s.py"
    source = "# -*- coding: latin-1 -*-\nimport trl  # ä\nfrom transformers import AdamW\n"
    path.write_bytes(source.encode("latin-1"))
    assert main(["migrate", "--write", str(path)]) == 0
    shown = capsys.readouterr()
    assert path.read_bytes().decode("latin-1") == source.replace("trl", "fastrl")
    assert shown.out == "" and f"{path}:3: transformers.AdamW is gone" in shown.err
    assert shown.err.endswith("rewritten\n")
    assert main(["migrate", "--write", str(path)]) == 0
    assert "nothing to change" in capsys.readouterr().err


def test_files_that_cannot_be_read(tmp_path, capsys):
    broken, fine = tmp_path / "broken.py", tmp_path / "fine.py"
    broken.write_text("x = \n")
    fine.write_text("import trl\n")
    missing = tmp_path / "missing.py"
    assert main(["migrate", str(missing), str(broken), str(fine)]) == 2
    shown = capsys.readouterr()
    assert f"{missing}: [Errno 2]" in shown.err and f"{broken}: invalid syntax" in shown.err
    assert "+import fastrl" in shown.out


def test_a_file_that_fails_leaves_the_others_done(tmp_path, capsys, monkeypatch):
    from fastrl.compat import migration

    def fail_at_boo(source):
        assert "boo" not in source, "no boo"
        return migrate(source)

    monkeypatch.setattr(migration, "migrate", fail_at_boo)
    bad, fine = tmp_path / "bad.py", tmp_path / "fine.py"
    bad.write_text("boo\n")
    fine.write_text("import trl\n")
    assert main(["migrate", "--write", str(bad), str(fine)]) == 2
    assert (
        f"fastrl migrate: {bad}: not rewritten, AssertionError: no boo" in capsys.readouterr().err
    )
    assert (bad.read_text(), fine.read_text()) == ("boo\n", "import fastrl\n")
