"""Commands that fail, and what their users read: the name, what happened, the last lines, the log, a hint."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from rules import digest
from rules.action import Action, Output
from rules.errors import StepFailed
from tests.lab import Lab
from tests.space import texts

OK = "(out / 'a').write_text('one')"


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def _failure(lab: Lab, action: Action) -> str:
    with pytest.raises(StepFailed) as error:
        lab.made(action)
    assert not lab.executor.fresh(action)
    return str(error.value)


def test_a_failure_shows_name_exit_code_last_lines_and_log(lab: Lab) -> None:
    text = _failure(lab, lab.action("s:a", "[print('line', n) for n in range(100)]; sys.exit(3)"))
    assert text.startswith("s:a failed with exit code 3\n")
    assert f"log  {lab.file('logs/s/a.log')}" in text
    assert "line 99" in text
    assert "line 85\n" in text
    assert "line 84\n" not in text
    assert "hint: " in text
    assert len(lab.file("logs/s/a.log").read_text().splitlines()) == 100


def test_a_traceback_of_a_tool_is_among_the_last_lines(lab: Lab) -> None:
    assert "ZeroDivisionError" in _failure(lab, lab.action("s:a", "1 / 0"))


def test_an_action_of_a_container_does_not_run_outside_of_it(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    text = _failure(lab, replace(lab.action("s:a", OK), runner="docker"))
    assert text.startswith("docker is not installed here")
    assert "hint: install it, or run inside the container" in text
    assert lab.ran() == []


def test_a_failed_command_is_never_stored(lab: Lab) -> None:
    action = lab.action("s:a", f"{OK}; sys.exit(1)")
    _failure(lab, action)
    assert not list(lab.store.keys())
    assert not lab.file("s/a").exists()
    assert not lab.file("s/a.receipt.json").exists()
    _failure(lab, action)
    assert lab.ran() == ["s:a", "s:a"], "it is tried again"


def test_a_failure_leaves_the_outputs_of_the_time_before(lab: Lab) -> None:
    lab.make(lab.action("s:a", OK))
    _failure(lab, lab.action("s:a", "sys.exit(1)"))
    assert lab.files("s:a") == {"a": b"one"}
    assert lab.make(lab.action("s:a", OK)) == ["fresh"]


def test_nothing_is_left_of_the_work_of_a_failed_command(lab: Lab) -> None:
    _failure(lab, lab.action("s:a", f"{OK}; sys.exit(1)"))
    assert not list(lab.file("work").iterdir())


def test_a_missing_output_is_an_error_that_says_what_was_found(lab: Lab) -> None:
    text = _failure(lab, lab.action("s:a", OK, outputs=("a", "*.bin", "deep/b")))
    assert "s:a did not make its outputs" in text
    assert "*.bin, deep/b" in text
    assert "found    a" in text
    assert not list(lab.store.keys())


def test_no_output_at_all_is_an_error(lab: Lab) -> None:
    assert "nothing" in _failure(lab, lab.action("s:a", "pass"))


@pytest.mark.parametrize("target", ["nowhere", "/tmp", "."])
def test_a_link_to_no_file_is_an_error_and_not_lost_in_silence(lab: Lab, target: str) -> None:
    text = _failure(lab, lab.action("s:a", f"{OK}; os.symlink({target!r}, out / 'link')"))
    assert "s:a made what is no file: link" in text
    assert "hint: links must lead to files" in text


def test_a_pipe_is_an_error_and_does_not_hang(lab: Lab) -> None:
    assert "no file: pipe" in _failure(lab, lab.action("s:a", f"{OK}; os.mkfifo(out / 'pipe')"))


def test_signal_9_hints_at_memory(lab: Lab) -> None:
    text = _failure(lab, lab.action("s:a", "os.kill(os.getpid(), 9)"))
    assert "s:a failed with signal 9" in text
    assert "memory" in text


def test_another_signal_does_not(lab: Lab) -> None:
    text = _failure(lab, lab.action("s:a", "os.kill(os.getpid(), 11)"))
    assert "s:a failed with signal 11" in text
    assert "memory" not in text


def test_a_timeout_names_the_action_its_time_and_its_last_lines(lab: Lab) -> None:
    text = _failure(lab, lab.action("s:a", "print('so far', flush=True); time.sleep(60)", timeout_s=0.5))
    assert text.startswith("s:a had no end after 0.5 s\n")
    assert "so far" in text
    assert not list(lab.store.keys())


def test_a_toolchain_that_is_not_installed_is_told_before_anything_runs(lab: Lab) -> None:
    text = _failure(lab, lab.action("s:a", OK, toolchain=(("numpy", "0.0"), ("no-such-package", "1"))))
    assert "numpy is not the version" in text
    assert "no-such-package is not the version" in text
    assert lab.ran() == []


def test_a_command_that_changes_its_input_is_an_error_and_the_input_is_made_good(lab: Lab) -> None:
    """One that makes it writable first: read-only files do not stop it."""
    for size in (3, 2 << 20):
        source = lab.action("s:a", f"(out / 'a').write_bytes(b'x' * {size})")
        harm = "f = places[0] / 'a'; f.chmod(0o644); f.open('r+b').write(b'!'); os.link(f, out / 'stolen')"
        lab.make(source)
        text = _failure(lab, lab.action("s:b", harm, ("a", Output(action="s:a"))))
        assert "s:b changed its input s:a" in text
        lab.make(source)
        assert lab.files("s:a") == {"a": b"x" * size}


@pytest.mark.parametrize("only", [(), ("a",)])
def test_a_command_that_writes_in_place_fails_and_harms_neither_input_nor_store(
    lab: Lab, only: tuple[str, ...]
) -> None:
    """As root too. The file is large enough to be a hard link to the blob."""
    source = lab.action("s:a", f"(out / 'a').write_bytes(b'x' * {2 << 20})")
    lab.make(source)
    (entry,) = lab.executor.artifacts.receipt("s:a").entries
    harm = "(places[0] / 'a').open('r+b').write(b'!')"
    assert "PermissionError" in _failure(lab, lab.action("s:b", harm, ("a", Output(action="s:a", only=only))))
    assert digest.of_file(lab.store.blob(entry.digest)) == entry.digest
    assert lab.make(source) == ["fresh"]


def test_a_harmed_view_of_an_input_does_not_reach_the_next_action(lab: Lab) -> None:
    for size in (3, 2 << 20):
        source = lab.action("s:a", f"(out / 'a').write_bytes(b'x' * {size}); (out / 'b').touch()")
        harm = "f = places[0] / 'a'; f.chmod(0o644); f.open('r+b').write(b'!'); (out / 'o').touch()"
        lab.make(source)
        with contextlib.suppress(StepFailed):  # where the view is a copy nothing was harmed
            lab.made(lab.action("s:b", harm, ("a", Output(action="s:a", only=("a",)))))
        copy = "(out / 'a').write_bytes((places[0] / 'a').read_bytes())"
        lab.make(source, lab.action("s:c", copy, ("a", Output(action="s:a", only=("a",)))))
        assert lab.files("s:c") == {"a": b"x" * size}


def test_the_environment_of_an_action_is_its_own(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    dump = "import json; text = json.dumps(dict(os.environ)); print(text); (out / 'env').write_text(text)"
    lab.made(lab.action("s:a", dump, env=(("MODE", "a b"), ("PLACE", "{out}/x"))))
    seen = json.loads(lab.files("s:a")["env"])
    assert seen["MODE"] == "a b"
    assert seen["PLACE"].endswith("/out/x")
    assert "HF_TOKEN" not in seen
    assert not [path for path, text in texts(lab.root) if "hf_secret" in text]


def test_a_secret_of_the_user_is_not_in_the_key(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.made(lab.action("s:a", OK))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert lab.make(lab.action("s:a", OK)) == ["fresh"]


def test_braces_that_name_no_input_stay_as_they_are(lab: Lab) -> None:
    lab.made(lab.action("s:a", "(out / 'a').write_text('{\"x\": {}} {nobody}')"))
    assert lab.files("s:a") == {"a": b'{"x": {}} {nobody}'}


def test_the_command_is_heard_while_it_runs(lab: Lab) -> None:
    lab.made(lab.action("s:a", f"print('halfway'); {OK}"))
    assert lab.heard == ["halfway"]


def test_a_record_says_how_and_a_receipt_does_not(lab: Lab) -> None:
    record = lab.made(lab.action("s:a", OK))
    text = lab.file("s/a.receipt.json").read_text()
    for volatile in (record.key, record.host, record.started[:10], "seconds", str(lab.root)):
        assert volatile not in text
    assert record.how == "ran"
    assert record.log == str(lab.file("logs/s/a.log"))
    assert os.uname().nodename == record.host


def test_the_logs_that_a_failed_command_left_are_kept_and_named(lab: Lab) -> None:
    code = "Path('deep').mkdir(); Path('deep/server.log').write_text('why'); sys.exit(1)"
    text = _failure(lab, lab.action("s:a", code))
    kept = lab.file("logs/s/a.server.log")
    assert kept.read_text() == "why"
    assert str(kept) in text


def test_a_variable_that_an_action_names_is_passed_as_the_user_has_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("AWS_REGION", "here")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    dump = "import json; (out / 'env').write_text(json.dumps(dict(os.environ)))"
    lab.made(lab.action("s:a", dump, passes=("AWS_*", "HF_HUB_OFFLINE", "NOT_SET")))
    seen = json.loads(lab.files("s:a")["env"])
    assert seen["AWS_REGION"] == "here"
    assert not {"HF_TOKEN", "NOT_SET", "HF_HUB_OFFLINE"} & set(seen), (
        "what the user has not set is not set by us either"
    )


def test_an_action_that_leases_no_gpu_sees_none(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else PyTorch takes the first one that there is, beside the action that leased it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    lab.made(lab.action("s:a", "(out / 'seen').write_text(os.environ['CUDA_VISIBLE_DEVICES'])"))
    assert lab.files("s:a") == {"seen": b""}
