import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dolg_tf.evaluation.gldv2 import kaggle_csv
from dolg_tf.evaluation.gldv2.kaggle_csv import Solution
from dolg_tf.stage.config import InputError

# The published cases of the dataset's own reader.
RECOGNITION = """id,landmarks,Usage
0123456789abcdef,0 12,Public
0223456789abcdef,,Public
0323456789abcdef,100,Ignored
0423456789abcdef,1,Private
0523456789abcdef,,Ignored
"""
RETRIEVAL = """id,images,Usage
0123456789abcdef,None,Ignored
0223456789abcdef,fedcba9876543210 fedcba9876543200,Public
0323456789abcdef,fedcba9876543200,Private
0423456789abcdef,fedcba9876543220,Private
0523456789abcdef,None,Ignored
"""


def _file(folder, text):
    path = folder / "some.csv"
    path.write_text(text)
    return path


def test_published_solutions(tmp_path):
    found = kaggle_csv.read_solution(_file(tmp_path, RECOGNITION), "recognition")
    assert found.public == {"0123456789abcdef": ("0", "12"), "0223456789abcdef": ()}
    assert found.private == {"0423456789abcdef": ("1",)}
    assert found.ignored == {"0323456789abcdef", "0523456789abcdef"}
    assert list(found.both) == ["0123456789abcdef", "0223456789abcdef", "0423456789abcdef"]
    found = kaggle_csv.read_solution(_file(tmp_path, RETRIEVAL), "retrieval")
    assert found.public == {"0223456789abcdef": ("fedcba9876543210", "fedcba9876543200")}
    assert set(found.private) == {"0323456789abcdef", "0423456789abcdef"}
    assert found.ignored == {"0123456789abcdef", "0523456789abcdef"}


def test_published_predictions(tmp_path):
    solution = kaggle_csv.read_solution(_file(tmp_path, RECOGNITION), "recognition")
    text = (
        "id,landmarks\n0123456789abcdef,12 0.1 \n0423456789abcdef,0 19.0\n0223456789abcdef,\n\n"
        "0523456789abcdef,14 0.01\n"
    )
    found = kaggle_csv.read_predictions(_file(tmp_path, text), "recognition", solution)
    assert found == {"0123456789abcdef": ("12", 0.1), "0423456789abcdef": ("0", 19.0)}
    solution = kaggle_csv.read_solution(_file(tmp_path, RETRIEVAL), "retrieval")
    text = (
        "id,images\n0123456789abcdef,fedcba9876543250 \n0423456789abcdef,fedcba9876543260\n"
        "0223456789abcdef,fedcba9876543210 fedcba9876543200 fedcba9876543220\n\n0523456789abcdef,\n"
    )
    found = kaggle_csv.read_predictions(_file(tmp_path, text), "retrieval", solution)
    assert found == {
        "0423456789abcdef": ("fedcba9876543260",),
        "0223456789abcdef": ("fedcba9876543210", "fedcba9876543200", "fedcba9876543220"),
    }


def test_landmarks_are_numbers_where_they_can_be(tmp_path):
    path = _file(tmp_path, "id,landmarks,Usage\na,007 eiffel,Public\n")
    solution = kaggle_csv.read_solution(path, "recognition")
    assert solution.public == {"a": ("7", "eiffel")}
    assert kaggle_csv.landmark_name("000") == "0"
    for text in ("1", "01", "1.0", "1.", "001.000"):
        assert kaggle_csv.landmark_name(text) == "1"
    for text in ("1.5", "-1", "1e3", ".0", "x1", "1.0.0", "\u0661"):
        assert kaggle_csv.landmark_name(text) == text
    # Longer than the numbers that Python reads.
    assert kaggle_csv.landmark_name("0" + 5000 * "7") == 5000 * "7"
    path = _file(tmp_path, "id,landmarks\na,07 1e-3\n")
    found = kaggle_csv.read_predictions(path, "recognition", solution)
    assert found == {"a": ("7", 0.001)}


def test_names_are_joined_where_that_is_clear_and_it_is_told(tmp_path, caplog):
    text = (
        "images,Usage,id\n1/x.jpg y.jpg,Public,q/a.jpg\nz.jpg,Private,b.jpg\nNone,Ignored,c.jpg\n"
    )
    solution = kaggle_csv.read_solution(_file(tmp_path, text), "retrieval")
    assert solution.both == {"a": ("x", "y"), "b": ("z",)} and solution.ignored == {"c"}
    assert "some.csv: 3 of 3 photos are taken without folder and suffix, such as" in caplog.text
    caplog.clear()
    path = _file(tmp_path, "\ufeffimages,id\nx 5/y.png other.jpg,a\nz,b.jpeg\nx,c.jpg\n")
    found = kaggle_csv.read_predictions(path, "retrieval", solution)
    assert found == {"a": ("x", "y", "other.jpg"), "b": ("z",)}
    assert (
        "some.csv: 3 photos are taken without folder and suffix, such as '5/y.png'" in caplog.text
    )
    caplog.clear()
    solution = Solution({"a": ("1",), "b": ("2",)}, {}, frozenset())
    path = _file(tmp_path, 'id,landmarks\na,1.0 0.5\nb," 02 0.25"\n')
    found = kaggle_csv.read_predictions(path, "recognition", solution)
    assert found == {"a": ("1", 0.5), "b": ("2", 0.25)}
    assert "some.csv: 2 landmarks are taken as numbers, such as '1.0'" in caplog.text


def test_names_that_differ_by_their_suffix_alone_stay_as_they_are(tmp_path, caplog):
    text = "id,images,Usage\na,x.jpg x.png,Public\n"
    solution = kaggle_csv.read_solution(_file(tmp_path, text), "retrieval")
    assert solution.public == {"a": ("x.jpg", "x.png")}
    found = kaggle_csv.read_predictions(
        _file(tmp_path, "id,images\na,x.png x\n"), "retrieval", solution
    )
    assert found == {"a": ("x.png", "x")} and not caplog.messages
    path = _file(tmp_path, "id,images\na,x.png\na.jpg,x.png\n")
    with pytest.raises(InputError, match=r"line 3: the id 'a\.jpg' is there with and without suff"):
        kaggle_csv.read_predictions(path, "retrieval", solution)


@pytest.mark.parametrize(
    ("task", "truth", "made", "told"),
    [
        (
            "retrieval",
            ("x",),
            ("y", "z"),
            "0 of 2 images in it .* first is 'y', the .* like 'x'",
        ),
        ("recognition", ("1",), kaggle_csv.Recognised("2", 0.5), "0 of 1 landmarks in it"),
        ("retrieval", ("x",), ("y", "x"), None),
        ("retrieval", ("x",), (), None),
        ("retrieval", (), ("y",), None),
    ],
)
def test_a_score_of_zero_is_never_silent(caplog, task, truth, made, told):
    solution = Solution({"a": truth}, {}, frozenset())
    kaggle_csv.warn_of_strangers(solution, task, {"a": made}, "some.csv")
    assert len(caplog.messages) == (told is not None)
    assert told is None or re.search(told, caplog.messages[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'id'"),
        ("id,landmarks,Usage\na,1,Public\n", "--task=retrieval reads id,images,Usage"),
        ("id,images,Usage\na,b\n", "line 2: 2 fields"),
        ("id,images,Usage\na,b,Publ\n", "line 2: Usage is 'Publ'"),
        ("id,images,Usage\na,b,Public\na,c,Ignored\n", "line 3: the id 'a' is repeated"),
        ("id,images,Usage\n,b,Public\n", "the id '' is empty"),
        ("id,images,Usage\na,None,Ignored\n", "no query is Public or Private"),
        ("id,images,Usage\n", "no query is Public or Private"),
    ],
)
def test_wrong_solutions(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as error:
        kaggle_csv.read_solution(_file(tmp_path, text), "retrieval")
    assert "some.csv" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,images\na,b\n", "--task=recognition reads id,landmarks"),
        ("id,landmarks\nz,1 0.5\n", "'z' is not in the solution, whose ids are like 'a'; is"),
        ("id,landmarks\na,1 0.5\na,\n", "line 3: the id 'a' is repeated"),
        ("id,landmarks\na,1\n", "line 2: '1' is not a landmark and its score"),
        ("id,landmarks\na,1 0.5 2 0.3\n", "is not a landmark and its score"),
        ("id,landmarks\na,1 x\n", "is not a landmark and its score"),
        ("id,landmarks\na,1 nan\n", "is not a landmark and its score"),
        ("id,landmarks\na,1 inf\n", "is not a landmark and its score"),
    ],
)
def test_wrong_predictions(tmp_path, text, message):
    solution = Solution({"a": ("1",)}, {}, frozenset())
    with pytest.raises(InputError, match=message):
        kaggle_csv.read_predictions(_file(tmp_path, text), "recognition", solution)


def test_says_what_may_be_cut_off(tmp_path, caplog):
    solution = Solution({"a": ("1",), "b": ()}, {"c": ()}, frozenset("d"))
    kaggle_csv.read_predictions(
        _file(tmp_path, "id,landmarks\na,1 0.5\nc,\nb,1 0.\n"), "recognition", solution
    )
    assert not caplog.messages
    path = _file(tmp_path, "id,landmarks\na,1 0.5\nb,1 0.")
    assert set(kaggle_csv.read_predictions(path, "recognition", solution)) == {"a", "b"}
    assert "does not end in a line feed" in caplog.messages[0]
    assert "no row for 1 of 3 queries, first 'c'" in caplog.messages[1]
    path = _file(tmp_path, "id,images\na," + "x " * 101 + "\nb," + "x " * 100 + "\nc,\n")
    kaggle_csv.read_predictions(path, "retrieval", solution)
    assert "only the first 100 photos of a query count; 1 queries have more" in caplog.messages[2]


def test_sample(tmp_path):
    path = _file(tmp_path, "id,landmarks\nb,8815 0.03\na,8815 0.03\n")
    assert kaggle_csv.read_sample(path, "recognition") == ["b", "a"]
    with pytest.raises(InputError, match="reads id,images"):
        kaggle_csv.read_sample(path, "retrieval")
    with pytest.raises(InputError, match="lists no query"):
        kaggle_csv.read_sample(_file(tmp_path, "id,landmarks\n"), "recognition")
    with pytest.raises(InputError, match="no such file"):
        kaggle_csv.read_sample(tmp_path / "none.csv", "recognition")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_scores_come_back_bit_for_bit(tmp_path_factory, scores):
    path = tmp_path_factory.mktemp("csv") / "some.csv"
    made = {str(i): ("7", score) for i, score in enumerate(scores)}
    kaggle_csv.write_predictions(path, "recognition", [*made.items(), ("none", None)])
    solution = Solution(dict.fromkeys([*made, "none"], ()), {}, frozenset())
    assert kaggle_csv.read_predictions(path, "recognition", solution) == made


def test_writes_whole_or_nothing(tmp_path):
    path = tmp_path / "deep" / "some.csv"
    kaggle_csv.write_predictions(path, "retrieval", [("a", ("x", "y")), ("b", None), ("c", ())])
    assert path.read_bytes() == b"id,images\na,x y\nb,\nc,\n"

    def interrupted():
        yield "a", ("z",)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kaggle_csv.write_predictions(path, "retrieval", interrupted())
    assert path.read_bytes() == b"id,images\na,x y\nb,\nc,\n"
    assert list(path.parent.iterdir()) == [path]
