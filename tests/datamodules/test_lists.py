import pytest

from firstlight.datamodules.lists import check_disjoint, check_present, find_lists, read_list


def write(tmp_path, text):
    (tmp_path / "some_train.txt").write_text(text)
    return tmp_path / "some_train.txt"


def test_order_and_labels_are_those_of_the_file_with_and_without_a_final_newline(tmp_path):
    text = "b/2.jpg 1\na/with space.jpg 0\nb/1.jpg 1"
    one = read_list(write(tmp_path, text))
    assert one.paths == ["b/2.jpg", "a/with space.jpg", "b/1.jpg"]
    assert one.labels == [1, 0, 1]
    assert read_list(write(tmp_path, text + "\n")) == one
    assert read_list(write(tmp_path, text.replace("\n", "\r\n") + "\r\n\r\n")) == one


def test_a_list_of_paths_alone_has_no_labels(tmp_path):
    one = read_list(write(tmp_path, "n01440764_10026.JPEG\nn01440764 b 3.JPEG\n"))
    assert one.paths == ["n01440764_10026.JPEG", "n01440764 b 3.JPEG"]
    assert one.labels is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no images"),
        ("a.jpg 0\nb.jpg\n", r"line 1 is 'a.jpg 0', but line 2 is 'b.jpg'"),
        ("a.jpg -1\nb.jpg 1\n", "line 1 is 'a.jpg -1'"),
        ("a.jpg 0\nb.jpg 1\na.jpg 2\n", r"lists a\.jpg twice"),
    ],
)
def test_lists_that_cannot_be_right_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_list(write(tmp_path, text))


def test_a_list_of_windows_editors_is_read_and_another_encoding_named(tmp_path):
    file = tmp_path / "l.txt"
    file.write_bytes("\ufeffa\u2028b.jpg 0\r\nc.jpg 1\r\n".encode())
    assert read_list(file)[1:] == (["a\u2028b.jpg", "c.jpg"], [0, 1])
    file.write_bytes("caf\xe9.jpg 0".encode("latin-1"))
    with pytest.raises(ValueError, match=r"l\.txt is no UTF-8 text"):
        read_list(file)


def test_lists_are_found_by_the_split_in_their_names(tmp_path):
    for name in ("X_LT_train.txt", "X_LT_test.txt"):
        (tmp_path / name).write_text("a 0")
    found = find_lists(str(tmp_path))
    assert {k: f.name for k, f in found.items()} == {
        "train": "X_LT_train.txt",
        "test": "X_LT_test.txt",
    }
    (tmp_path / "Y_train.txt").write_text("a 0")
    with pytest.raises(ValueError, match=r"X_LT_train\.txt and Y_train\.txt"):
        find_lists(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no folder .*none"):
        find_lists(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="not 'dev'"):
        find_lists({"dev": "x"})
    with pytest.raises(FileNotFoundError, match="no such list"):
        read_list(find_lists({"train": "nowhere.txt"})["train"])


def test_missing_files_are_counted_and_the_first_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.jpg").write_text("")
    paths = [str(tmp_path / p) for p in ("a/1.jpg", "b/2.jpg", "a/3.jpg")]
    check_present(paths[:1], "some.txt")
    with pytest.raises(FileNotFoundError, match=r"some\.txt lists 3 .* 2 are missing.*b/2\.jpg"):
        check_present(paths, "some.txt")


def test_an_image_in_two_splits_is_named():
    check_disjoint({"train": ["a", "b"], "test": ["c"]})
    with pytest.raises(ValueError, match="b is in train and in test"):
        check_disjoint({"train": ["a", "b"], "test": ["c", "b"]})
