"""An action's outputs are there, or come from the store, or its command runs: and never more than needed."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rules import digest
from rules.action import Action, Files, Local, Output, Pinned, key
from rules.artifacts import Unknown
from rules.errors import StepFailed
from tests.lab import Lab

ONE = "(out / 'a').write_text('one'); (out / 'b').write_text('two')"
COPY = "(out / 'c').write_bytes((places[0] / 'a').read_bytes())"
LARGE = "(out / 'a').write_bytes(b'x' * (2 << 20)); (out / 'b').write_text('two')"


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def _chain(lab: Lab, code: str = ONE) -> tuple[Action, Action]:
    """b reads all of a."""
    return lab.action("s:a", code), lab.action("s:b", COPY, ("a", Output(action="s:a")))


def _script(lab: Lab, text: str) -> Files:
    path = lab.root / "script.py"
    path.write_text(text)
    return Files(root=str(path), members=(("", digest.of_file(path)),))


def test_a_command_runs_once_and_leaves_outputs_receipt_record_and_log(lab: Lab) -> None:
    assert lab.make(*_chain(lab)) == ["ran", "ran"]
    assert lab.ran() == ["s:a", "s:b"]
    assert lab.files("s:a") == {"a": b"one", "b": b"two"}
    assert lab.files("s:b") == {"c": b"one"}
    for path in ("s/a.receipt.json", "s/a.record.json", "logs/s/a.log"):
        assert lab.file(path).is_file()


def test_nothing_runs_twice(lab: Lab) -> None:
    lab.make(*_chain(lab))
    lab.ran()
    assert lab.make(*_chain(lab)) == ["fresh", "fresh"]
    assert lab.ran() == []


def test_nothing_is_left_of_the_work(lab: Lab) -> None:
    lab.make(*_chain(lab))
    assert not list(lab.file("work").iterdir())


def test_an_action_whose_input_was_not_made_is_unknown_and_not_fresh(lab: Lab) -> None:
    _, b = _chain(lab)
    assert not lab.executor.fresh(b)
    with pytest.raises(Unknown):
        lab.made(b)


def test_touching_outputs_and_inputs_rebuilds_nothing(lab: Lab) -> None:
    chain = _chain(lab)
    lab.make(*chain)
    for path in lab.root.rglob("*"):
        os.utime(path)
    assert lab.make(*chain) == ["fresh", "fresh"]


@pytest.mark.parametrize("code", [ONE, LARGE])
@pytest.mark.parametrize("harm", ["modify", "truncate", "empty", "delete", "add", "link", "run bit", "wipe", "folder"])
def test_a_harmed_artifact_is_noticed_and_made_good_without_a_command(lab: Lab, code: str, harm: str) -> None:
    chain = _chain(lab, code)
    lab.make(*chain)
    before = lab.files("s:a")
    lab.ran()
    _harm(lab.file("s/a"), harm)
    assert not lab.executor.fresh(chain[0])
    how = lab.make(*chain)
    assert lab.files("s:a") == before
    through_a_link = code is LARGE and harm in ("modify", "truncate", "empty") and how[0] == "ran"
    assert lab.ran() == (["s:a"] if through_a_link else []), "only a blob that was written through a link is made anew"
    assert how[1] == ("local" if through_a_link else "fresh"), "a copy of equal bytes is the same blob"
    assert lab.files("s:b")["c"] == before["a"]


def _harm(folder: Path, harm: str) -> None:
    file = folder / "a"
    if harm in ("modify", "truncate", "empty"):
        file.chmod(0o644)
        data = bytearray(file.read_bytes())
        data[0] ^= 1
        file.write_bytes(bytes({"modify": data, "truncate": data[:-1], "empty": b""}[harm]))
    elif harm in ("delete", "folder"):
        file.unlink()
        if harm == "folder":
            file.mkdir()
    elif harm == "wipe":
        shutil.rmtree(folder)
    elif harm == "run bit":
        (folder / "b").chmod(0o755)
    elif harm == "link":
        (folder / "extra").symlink_to("nowhere")
    else:
        (folder / "extra").write_text("extra")


def test_a_lost_receipt_or_record_is_made_good_without_a_command(lab: Lab) -> None:
    chain = _chain(lab)
    lab.make(*chain)
    lab.ran()
    for path in ("s/a.receipt.json", "s/a.record.json"):
        for text in (None, "", "{", "[]", "{}", "null"):
            lab.file(path).unlink() if text is None else lab.file(path).write_text(text)
            assert lab.make(*chain) == ["local", "fresh"]
    assert lab.ran() == []


def test_wiped_artifacts_with_the_store_kept_are_restored_without_a_command(lab: Lab) -> None:
    """The poisoned build: every command would fail."""
    chain = _chain(lab)
    lab.make(*chain)
    before = lab.files("s:a"), lab.files("s:b")
    shutil.rmtree(lab.file(""))
    lab.trace.unlink()
    lab.trace.mkdir()  # no command can leave its name: each would fail
    assert lab.make(*chain) == ["local", "local"]
    assert (lab.files("s:a"), lab.files("s:b")) == before


def test_the_poison_works(lab: Lab) -> None:
    lab.trace.mkdir()
    with pytest.raises(Exception, match="failed with exit code 1"):
        lab.made(lab.action("s:a", ONE))


def test_a_lost_store_is_filled_again_when_something_is_missing(lab: Lab) -> None:
    chain = _chain(lab)
    lab.make(*chain)
    shutil.rmtree(lab.root / "store")
    assert lab.make(*chain) == ["fresh", "fresh"]
    lab.file("s/a/a").unlink()
    assert lab.make(*chain) == ["ran", "fresh"]


def test_a_changed_command_runs_again_and_what_depends_on_it(lab: Lab) -> None:
    lab.make(*_chain(lab))
    lab.ran()
    assert lab.make(*_chain(lab, ONE.replace("one", "eins"))) == ["ran", "ran"]
    assert lab.files("s:b") == {"c": b"eins"}


def test_an_edit_that_yields_equal_bytes_cuts_off_early(lab: Lab) -> None:
    lab.make(*_chain(lab))
    lab.ran()
    assert lab.make(*_chain(lab, ONE + "  # a comment")) == ["ran", "fresh"]
    assert lab.ran() == ["s:a"]


def test_going_back_is_a_hit(lab: Lab) -> None:
    lab.make(*_chain(lab))
    lab.make(*_chain(lab, ONE.replace("one", "eins")))
    lab.ran()
    assert lab.make(*_chain(lab)) == ["local", "local"]
    assert lab.ran() == []


def test_the_bytes_of_a_tool_are_part_of_the_key_and_its_place_and_time_are_not(lab: Lab) -> None:
    run = "exec(places[0].read_text())"
    action = lab.action("s:a", run, ("tool", _script(lab, ONE)))
    assert lab.make(action) == ["ran"]
    os.utime(lab.root / "script.py")
    assert lab.make(lab.action("s:a", run, ("tool", _script(lab, ONE)))) == ["fresh"]
    assert lab.make(lab.action("s:a", run, ("tool", _script(lab, ONE + "\n")))) == ["ran"]


def test_only_views_show_just_the_selected_files(lab: Lab) -> None:
    names = "(out / 'seen').write_text(' '.join(sorted(p.name for p in places[0].iterdir())))"
    make_three = "[(out / n).write_text(n) for n in ('config.json', 'tokenizer.json', 'weights.bin')]"
    source = lab.action("s:a", make_three)
    view = lab.action("s:b", names, ("a", Output(action="s:a", only=("tokenizer*", "*.bin"))))
    lab.make(source, view)
    assert lab.files("s:b") == {"seen": b"tokenizer.json weights.bin"}


def test_a_change_of_a_file_that_an_action_does_not_see_does_not_run_it(lab: Lab) -> None:
    def make(tokenizer: str) -> list[str]:
        source = lab.action("s:a", f"(out / 'w').write_text('w'); (out / 'tokenizer').write_text({tokenizer!r})")
        weights = lab.action("s:b", "(out / 'x').touch()", ("a", Output(action="s:a", only=("w",))))
        text = lab.action("s:c", "(out / 'x').touch()", ("a", Output(action="s:a", only=("tokenizer",))))
        return lab.make(source, weights, text)

    assert make("one") == ["ran", "ran", "ran"]
    assert make("two") == ["ran", "fresh", "ran"]


def _local(lab: Lab) -> Action:
    return lab.action("s:a", COPY, ("mine", Local(path=str(lab.root / "mine"))))


def test_a_folder_of_the_users_is_keyed_by_content(lab: Lab) -> None:
    (lab.root / "mine").mkdir()
    (lab.root / "mine" / "a").write_text("one")
    assert lab.make(_local(lab)) == ["ran"]
    os.utime(lab.root / "mine" / "a")
    assert lab.make(_local(lab)) == ["fresh"]
    (lab.root / "mine" / "a").write_text("two")
    assert lab.make(_local(lab)) == ["ran"]
    (lab.root / "mine" / "more").write_text("")
    assert lab.make(_local(lab)) == ["ran"]


def test_two_names_of_one_work_run_one_command(lab: Lab) -> None:
    """As two models of one source: the name is not keyed."""
    action = lab.action("s:a", ONE)
    twin = lab.graph["s:twin"] = Action(**{**vars(action), "name": "s:twin"})
    assert lab.make(action, twin) == ["ran", "local"]
    assert lab.files("s:twin") == lab.files("s:a")


def test_cleaning_removes_all_but_what_the_store_has(lab: Lab) -> None:
    (a, _) = _chain(lab)
    lab.make(a)
    lab.executor.artifacts.clean("s:a")
    assert not list(lab.file("s").iterdir())
    lab.executor.artifacts.clean("s:a")
    assert lab.make(a) == ["local"]


def test_equal_outputs_of_different_commands_are_equal_receipts(lab: Lab) -> None:
    lab.make(lab.action("s:a", ONE), lab.action("s:b", f"time.sleep(0.01); {ONE}"))
    assert lab.file("s/a.receipt.json").read_bytes() == lab.file("s/b.receipt.json").read_bytes()


def test_an_output_that_is_an_input_linked_costs_no_second_blob(lab: Lab) -> None:
    link = "os.link(places[0] / 'a', out / 'a')"
    lab.make(lab.action("s:a", LARGE), lab.action("s:b", link, ("a", Output(action="s:a"))))
    blobs = [path for path in (lab.root / "store" / "blobs").rglob("*") if path.is_file()]
    assert len(blobs) == 2
    assert lab.files("s:b")["a"] == lab.files("s:a")["a"]


def test_paths_with_spaces_and_braces_reach_the_command_whole(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "a {b} c")
    lab.root.mkdir()
    assert lab.make(*_chain(lab)) == ["ran", "ran"]


WARM = "notes = Path('{warm}') / 'notes'; count = len(notes.read_text()) if notes.exists() else 0; print(count); "
WARM += "notes.write_text('x' * (count + 1)); (out / 'a').touch()"


def test_a_warm_folder_outlives_its_command_and_is_shared_by_name(lab: Lab) -> None:
    for name, warm in (("s:a", "one"), ("s:b", "one"), ("s:c", "two")):
        lab.made(lab.action(name, f"{WARM}; '{name}'", warm=warm))
    assert lab.heard == ["0", "1", "0"]
    assert (lab.store.root / "warm/one/notes").read_text() == "xx"
    assert lab.make(lab.action("s:a", f"{WARM}; 's:a'", warm="two")) == ["fresh"], "it is no part of the key"


def test_a_store_that_cannot_be_written_leaves_the_warm_folder_to_the_checkout(lab: Lab) -> None:
    lab.store.root.mkdir()
    (lab.store.root / "warm").write_text("in the way")
    lab.made(lab.action("s:a", WARM, warm="one"))
    assert lab.file("warm/one/notes").read_text() == "x"


def test_an_observation_is_made_anew_each_time_and_stored_nowhere(lab: Lab) -> None:
    a, b = _chain(lab)
    lab.made(a)
    lab.ran()
    keys = {lab.executor.observe(b, lab.heard.append, lab.root / f"seen{turn}") for turn in (1, 2)}
    assert keys == {key(lab.executor.manifest(b))}
    assert lab.ran() == ["s:b", "s:b"]
    assert [(lab.root / f"seen{turn}" / "c").read_bytes() for turn in (1, 2)] == [b"one", b"one"]
    assert not lab.executor.cached(b)
    assert not lab.executor.artifacts.folder("s:b").exists()


def test_a_failed_observation_leaves_nothing_in_its_place(lab: Lab) -> None:
    action = lab.action("s:a", "(out / 'a').touch(); sys.exit(3)")
    with pytest.raises(StepFailed, match="failed with exit code 3"):
        lab.executor.observe(action, lab.heard.append, lab.root / "seen")
    assert not (lab.root / "seen").exists()


PINNED = Pinned(place="hf:o/n@1", members=(("a", 3, "ab" * 32),))


def test_a_digest_that_the_command_computed_while_it_wrote_is_not_computed_again(lab: Lab) -> None:
    """Shown by one that is not true: this is for tools of ours alone, whose command line asks for it."""
    tell = "(out / 'a').write_text('one'); open(sys.argv[2], 'w').write('{\"a\": \"' + 'cd' * 32 + '\"}')"
    action = lab.action("s:a", tell)
    lab.graph["s:a"] = action = replace(action, argv=(*action.argv, "{digests}"))
    lab.made(action)
    assert [entry.digest for entry in lab.executor.artifacts.receipt("s:a").entries] == ["cd" * 32]


def test_a_downloader_is_told_what_is_pinned_and_what_is_here_already(lab: Lab) -> None:
    take = "(out / 'a').write_text('one'); print(places[0].read_text().replace(chr(10), ' '))"
    lab.made(lab.action("s:a", take, ("files", PINNED)))
    assert json.loads(lab.heard[-1]) == {"place": PINNED.place, "files": [["a", 3, "ab" * 32]], "here": {}}
    lab.made(lab.action("s:b", take + "; 'again'", ("files", PINNED)))
    (blob,) = lab.store.digests()
    assert json.loads(lab.heard[-1])["here"] == {"ab" * 32: [str(lab.store.blob(blob).absolute()), blob]}


def test_what_is_not_pinned_has_no_key_and_is_refused_before_anything_runs(lab: Lab) -> None:
    action = lab.action("source:m", "(out / 'a').touch()", ("files", replace(PINNED, members=())))
    with pytest.raises(Unknown):
        lab.executor.manifest(action)
    with pytest.raises(StepFailed, match=r"hf:o/n@1 is not in models.lock\n    hint: doit lock m"):
        lab.made(action)
    assert lab.ran() == []
