"""A budget of memory over all visitors."""

from gsqtok.app.kept import Kept


def test_the_least_recently_used_goes_first():
    kept = Kept(100)
    first, second = kept.put("first", 40), kept.put("second", 40)
    assert kept.get(first) == "first"
    third = kept.put("third", 40)
    assert [kept.get(key) for key in (first, second, third)] == ["first", None, "third"]
    assert kept.bytes == 80


def test_the_newest_stays_whatever_it_takes():
    kept = Kept(10)
    old, new = kept.put("old", 5), kept.put("new", 50)
    assert (kept.get(old), kept.get(new), kept.bytes) == (None, "new", 50)


def test_a_visitor_s_next_image_takes_the_place_of_the_last():
    kept = Kept(1000)
    key = None
    for number in range(60):
        key = kept.put(number, 15, replaces=key)
    assert (kept.bytes, kept.get(key)) == (15, 59)
    assert kept.get(None) is kept.get("guessed") is None


def test_sixty_visitors_stay_within_the_budget():
    kept = Kept(512 * 2**20)
    for number in range(60):
        kept.put(number, 15 * 2**20)
    assert kept.bytes <= 512 * 2**20
