"""Support for tests of methods, of this package and of others: tiny models and federations, and promises of methods.

```python
from fedvlm.testing import PROMISES, Case, conformance

def test_my_method():
    conformance(MyMethod)                                   # all promises; or one test for each:

@pytest.mark.parametrize("promise", PROMISES, ids=str)
def test_promise(promise):
    promise.check(Case(MyMethod))
```
"""

from fedvlm.testing.case import Case, Promise
from fedvlm.testing.conformance import conformance
from fedvlm.testing.promises import PROMISES

__all__ = ["PROMISES", "Case", "Promise", "conformance"]
