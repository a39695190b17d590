"""Redirects lead no further inwards than what the user typed."""

import pytest

from controlllm.common.storage.reach import Reach, origin

INWARDS = ["93.184.216.34", "10.0.0.7", "127.0.0.1"]


@pytest.mark.parametrize("typed", range(3))
@pytest.mark.parametrize("other", range(3))
def test_no_further_inwards(typed, other):
    refusal = Reach(INWARDS[typed]).refusal(INWARDS[other])
    assert (refusal is None) == (other <= typed)


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("169.254.169.254", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("::1", "loopback"),
        ("0.0.0.0", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("100.64.0.1", "private"),
        ("fd00::2", "private"),
        ("192.168.0.1", "private"),
    ],
)
def test_kinds(address, kind):
    assert f"a {kind} address" in str(Reach("93.184.216.34").refusal(address))
    if kind == "link-local":
        assert Reach("127.0.0.1").refusal(address)


def test_typed_hosts_are_never_refused():
    reach = Reach("93.184.216.34", ["Inner"])
    assert reach.refusal("127.0.0.1", "inner") is None
    assert reach.refusal("127.0.0.1", "93.184.216.34") is None
    assert reach.refusal("127.0.0.1", "other")


def test_origins():
    assert origin("HTTPS://al:pw@Host/x") == origin("https://host:443") == ("https", "host", 443)
    assert origin("http://host:443") != origin("https://host:443")
