import threading, sys
import pytest
from tests.data.test_prepare import *
@pytest.mark.parametrize("i", range(60))
def test_threads(place, i):
    old=sys.getswitchinterval(); sys.setswitchinterval(1e-5)
    test_threads_of_one_process_do_not_meet(place)
    sys.setswitchinterval(old)
