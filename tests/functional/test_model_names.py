from firstlight.functional.model_names import unknown_model


def test_near_names_are_listed_whatever_the_tag():
    for name in ("resnet5O", "resnet5O.a1_in1k"):
        message = unknown_model(name)
        assert message.startswith(f"timm has no model named {name!r}; near names: ")
        assert "resnet50" in message


def test_where_nothing_is_near_the_list_is_named():
    assert unknown_model("@@@@") == (
        "timm has no model named '@@@@'; timm.list_models() lists the names"
    )
