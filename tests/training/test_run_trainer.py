"""The order of samples: each once, one modality a batch, similar lengths, another order each epoch."""

from hypothesis import given
from hypothesis import strategies as st

from cal_cli.toy.world import make_scenes
from cal_cli.training.run_trainer import IMAGE_WORDS, ModalityLengthSampler, estimate_length


@given(
    st.lists(st.tuples(st.integers(1, 200), st.booleans()), min_size=1, max_size=300),
    st.integers(1, 16),
    st.integers(0, 99),
)
def test_each_sample_comes_once_and_whole_batches_hold_one_modality(samples, batch_size, seed):
    lengths, shows = zip(*samples, strict=True)
    order = list(ModalityLengthSampler(lengths, shows, batch_size, seed))
    assert sorted(order) == list(range(len(samples)))
    whole = sum(shows) // batch_size + (len(shows) - sum(shows)) // batch_size
    for number in range(whole):
        batch = order[number * batch_size : (number + 1) * batch_size]
        assert len({shows[index] for index in batch}) == 1


def test_little_of_a_batch_is_padding_and_epochs_differ():
    entries = make_scenes(n=960).entries
    lengths, shows = [estimate_length(entry) for entry in entries], ["image" in entry for entry in entries]
    epoch = [0]
    sampler = ModalityLengthSampler(lengths, shows, 48, seed=0, epoch=lambda: epoch[0])
    orders = []
    for epoch[0] in (0, 1, 0):
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1]

    def padding(order):
        batches = [[lengths[index] for index in order[start : start + 48]] for start in range(0, len(order), 48)]
        return 1 - sum(map(sum, batches)) / sum(max(batch) * len(batch) for batch in batches)

    assert padding(orders[0]) < 0.25 * padding(range(len(entries)))


def test_a_length_is_the_words_and_the_picture():
    turns = [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a ring"}]
    assert estimate_length({"id": "a", "conversations": turns}) == 6
    assert estimate_length({"id": "a", "image": "x.png", "conversations": turns}) == 6 + IMAGE_WORDS
