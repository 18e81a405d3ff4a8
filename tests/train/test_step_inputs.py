"""Every way a step's rows can be wrong is told by argument, row and mend."""

import pytest
import torch

from fastrl.train.step_inputs import Limits, check_step_inputs

VOCAB = 10
LONGEST = 7


def rows(n=2):
    queries = [torch.tensor([1, 2, 3]) for _ in range(n)]
    responses = [torch.tensor([4, 5]) for _ in range(n)]
    scores = [torch.tensor(1.0) for _ in range(n)]
    return queries, responses, scores


def check(queries, responses, scores, masks=None, batch_size=2):
    check_step_inputs(batch_size, queries, responses, scores, masks, Limits(VOCAB, LONGEST))


def test_good_rows_pass():
    queries, responses, scores = rows()
    check(queries, responses, [scores[0], torch.tensor([2.0])])
    check(queries, responses, scores, masks=[torch.tensor([1, 0]), torch.tensor([0, 1])])


@pytest.mark.parametrize("name", ["queries", "responses", "scores"])
def test_not_a_list(name):
    given = dict(zip(("queries", "responses", "scores"), rows(), strict=True))
    given[name] = torch.stack(given[name])
    with pytest.raises(ValueError, match=rf"{name} must be a list of tensors.*: list\({name}\)"):
        check(**given)


@pytest.mark.parametrize("name", ["queries", "responses", "scores"])
def test_wrong_number_of_rows(name):
    given = dict(zip(("queries", "responses", "scores"), rows(), strict=True))
    given[name] = given[name][:1]
    with pytest.raises(ValueError, match=f"{name} has 1 entries but the batch size is 2"):
        check(**given)


def test_unequal_lists_without_a_batch_size():
    queries, responses, scores = rows()
    with pytest.raises(ValueError, match="responses has 1 entries"):
        check(queries, responses[:1], scores, batch_size=None)


@pytest.mark.parametrize("name", ["queries", "responses"])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1, 2], r"must be a tensor, got list: torch.as_tensor\(.*\[1\]\)"),
        (torch.tensor([1 + 0j]), "token ids, got torch.complex64"),
        (torch.tensor([True]), "token ids, got torch.bool"),
        (torch.tensor([[1, 2]]), r"must be 1-D, got shape \(1, 2\)"),
        (torch.tensor([], dtype=torch.long), "is empty"),
        (torch.tensor([1.0, 2.0]), "token ids, got torch.float32"),
        (torch.tensor([1, VOCAB]), f"is {VOCAB}, outside the vocabulary of {VOCAB}"),
        (torch.tensor([-1, 2]), "is -1, outside the vocabulary"),
    ],
)
def test_bad_token_rows(name, row, message):
    given = dict(zip(("queries", "responses", "scores"), rows(), strict=True))
    given[name][1] = row
    with pytest.raises(ValueError, match=rf"{name}\[1\].*{message}"):
        check(**given)


def test_the_position_of_a_bad_id_is_named():
    queries, responses, scores = rows()
    responses[1] = torch.tensor([4, 5, 99, 6])
    with pytest.raises(ValueError, match=r"responses\[1\]\[2\] is 99"):
        check(queries, responses, scores)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (torch.tensor([[1.0]]), r"must hold one number, got shape \(1, 1\)"),
        (torch.tensor([1.0, 2.0]), "must hold one number"),
        (torch.tensor(float("nan")), "is nan: scores must be finite"),
        (torch.tensor(float("-inf")), "is -inf"),
        (1.0, "must be a tensor, got float"),
        (torch.tensor(1e300, dtype=torch.float64), "is 1e.300: scores must be finite"),
        (torch.tensor(1j), "is complex"),
    ],
)
def test_bad_scores(score, message):
    queries, responses, scores = rows()
    scores[1] = score
    with pytest.raises(ValueError, match=rf"scores\[1\].*{message}"):
        check(queries, responses, scores)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.tensor([0, 0]), "is all 0"),
        (torch.tensor([1, 1, 1]), r"shape \(3,\)"),
        (torch.tensor([1, 2]), "must hold 0 and 1 only"),
        (torch.tensor([1, -1]), "must hold 0 and 1 only"),
        (torch.tensor([0.5, 1.0]), "must hold 0 and 1 only"),
        (torch.tensor([1.0, float("nan")]), "must hold 0 and 1 only"),
    ],
)
def test_bad_response_masks(mask, message):
    queries, responses, scores = rows()
    with pytest.raises(ValueError, match=rf"response_masks\[1\].*{message}"):
        check(queries, responses, scores, masks=[torch.tensor([1, 1]), mask])


def test_a_row_beyond_the_models_positions_is_named():
    queries, responses, scores = rows()
    responses[1] = torch.tensor([4, 5, 6, 7])
    check(queries, responses, scores)
    responses[1] = torch.tensor([4, 5, 6, 7, 8])
    message = r"queries\[1\] and responses\[1\] have 8 tokens together, the model takes 7"
    with pytest.raises(ValueError, match=message):
        check(queries, responses, scores)


def test_ids_of_any_whole_dtype_pass():
    queries, responses, scores = rows()
    kinds = [torch.int32, torch.uint8]
    check([q.to(k) for q, k in zip(queries, kinds, strict=True)], responses, scores)


def test_one_counted_token_in_all_cannot_be_whitened():
    queries, responses, scores = (row[:1] for row in rows())
    responses[0] = responses[0][:1]
    with pytest.raises(ValueError, match="a single token counts in the whole batch"):
        check(queries, responses, scores, batch_size=1)
    responses[0] = torch.tensor([4, 5])
    check(queries, responses, scores, batch_size=1)
    with pytest.raises(ValueError, match="a single token counts"):
        check(queries, responses, scores, [torch.tensor([0, 1])], batch_size=1)


def test_the_first_two_tokens_of_an_encoder_decoder_do_not_count():
    queries, responses, scores = rows()
    limits = Limits(VOCAB, uncounted=2)
    with pytest.raises(ValueError, match=r"responses\[0\] has 2 tokens.* at least 3 are needed"):
        check_step_inputs(2, queries, responses, scores, None, limits)
    responses = [torch.tensor([4, 5, 6])] * 2
    check_step_inputs(2, queries, responses, scores, None, limits)
    masks = [torch.tensor([0, 0, 1]), torch.tensor([1, 1, 0])]
    with pytest.raises(ValueError, match=r"response_masks\[1\] is all 0 from token 2 on"):
        check_step_inputs(2, queries, responses, scores, masks, limits)
