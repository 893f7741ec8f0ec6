"""The errors a user can meet: their exit codes are part of the contract, and they travel between processes."""

import pickle

import pytest

from cropreg import errors
from cropreg.errors import CropregError, InputError, UnreadableImage

EXIT_CODES = {
    "UsageError": 2,
    "InputError": 3,
    "UnreadableImage": 3,
    "OutputError": 4,
    "ClusterError": 5,
    "TooManyBadError": 6,
    "LockedError": 7,
    "ModelError": 8,
}


@pytest.mark.parametrize(("name", "code"), EXIT_CODES.items())
def test_error_ends_with_its_exit_code(name, code):
    assert getattr(errors, name).exit_code == code


def test_every_error_stands_in_the_table_of_exit_codes():
    public = {k for k, v in vars(errors).items() if isinstance(v, type) and issubclass(v, CropregError) and v is not CropregError}
    assert public == set(EXIT_CODES)


def test_every_error_stands_in_the_drawn_tree():
    assert all(name in (errors.__doc__ or "") for name in EXIT_CODES)


def test_unreadable_image_says_file_cause_and_cure():
    error = UnreadableImage("/a/b.jpg", "is cut short", "Copy it again.")
    assert str(error) == "/a/b.jpg: is cut short. Copy it again."
    assert str(UnreadableImage("/a/b.jpg", "is cut short")) == "/a/b.jpg: is cut short."
    assert isinstance(error, InputError)


def test_unreadable_image_is_the_same_when_pickled():
    error = UnreadableImage("/a/b.jpg", "is cut short", "Copy it again.")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is UnreadableImage
    assert (again.uri, again.cause, again.cure, str(again)) == (error.uri, error.cause, error.cure, str(error))


@pytest.mark.parametrize("name", sorted(set(EXIT_CODES) - {"UnreadableImage"}))
def test_error_keeps_its_text_when_pickled(name):
    again = pickle.loads(pickle.dumps(getattr(errors, name)("what, whose, and what to do")))
    assert type(again).__name__ == name
    assert str(again) == "what, whose, and what to do"
