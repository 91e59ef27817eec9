import os

import pytest

from refdiff.camera.commands import HELP, obey, read_lines, run_command
from refdiff.camera.track import Tracker
from refdiff.errors import InputError
from tests.support.fake_lanes import FakeEngines, FakeSource


@pytest.fixture
def tracker():
    with Tracker("none", FakeSource([], live=True), ["the red mug"], open_engines=FakeEngines().open) as made:
        yield made


def test_phrases_are_replaced_added_and_removed(tracker):
    assert run_command("phrase: the blue cup: left", tracker) == "follows 'the blue cup: left'"
    run_command("add:the plate", tracker)
    assert tracker.phrases == ("the blue cup: left", "the plate")
    run_command("phrase 2: the bowl", tracker)
    run_command("  Remove: the blue cup: left ", tracker)
    assert tracker.phrases == ("the bowl",)


def test_a_run_is_paused_resumed_and_changed(tracker):
    run_command("pause", tracker)
    assert tracker.paused
    run_command("RESUME", tracker)
    assert not tracker.paused
    run_command("variant: Official", tracker)
    assert tracker.run_options.variant == "official"
    assert run_command("key", tracker) == "answers the next frame"
    assert "frames/s" in run_command("status", tracker)
    assert run_command("", tracker) == ""


@pytest.mark.parametrize(
    "line",
    ["jump", "phrase:", "pause: now", "phrase 3: the mug", "phrase x: the mug", "remove: the cup", "add"],
)
def test_a_line_that_is_no_command_is_refused_and_changes_nothing(tracker, line):
    with pytest.raises(InputError, match="expected"):
        run_command(line, tracker)
    assert tracker.phrases == ("the red mug",)


def test_errors_are_replies_and_quit_ends_the_run(tracker):
    said = []
    obey(iter(["remove: the red mug", "", "quit"]), tracker, said.append)
    assert said[0].startswith("error: got no phrase")
    assert said[1:] == ["stops"]
    assert list(tracker) == []


def test_lines_come_as_they_are_written_and_the_last_needs_no_end():
    reading, writing = os.pipe()
    os.write(writing, b"pau")
    os.write(writing, "se\nphrase: the ca\u00f1on\nquit".encode())
    os.close(writing)
    assert list(read_lines(reading)) == ["pause", "phrase: the cañon", "quit"]
    os.close(reading)
    assert list(read_lines(reading)) == []


def test_every_command_of_the_help_is_known(tracker):
    names = {
        word.strip(" :,").split(":")[0].split()[0] for command, _ in HELP for word in command.split(", ")
    }
    assert names == {"phrase", "add", "remove", "pause", "resume", "variant", "key", "status", "quit"}
