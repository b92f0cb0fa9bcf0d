"""Memory after many requests."""

import psutil

from infra.local.examine import answers
from infra.local.examine.finding import Finding, UnknownError, decided
from infra.local.examine.lab import Lab, frozen

#: Requests after which memory is looked at first: until then caches fill.
FIRST = 100
#: What a request may add, in KiB, in the mean: 1,000 requests of it are five MiB.
LIMIT_KIB = 5.0


async def memory(lab: Lab) -> Finding:
    requests = 500 if lab.inputs.fast else 1000
    sizes = []
    async with lab.fleet(lab.direct()) as fleet:
        for number in range(1, requests + 1):
            answer = await fleet.invoke(lab.event(number))
            if not lab.is_right(number, answer):
                raise UnknownError(f"request {number} failed: {answers.described(answer)}")
            if number in (FIRST, requests):
                await frozen(fleet)
                sizes.append(psutil.Process(answer.pid).memory_info().rss / 1024)
    first, last = sizes
    added = (last - first) / (requests - FIRST)
    return decided(
        added <= LIMIT_KIB,
        f"{first / 1024:.1f} MiB after {FIRST} requests, {last / 1024:.1f} after {requests}:"
        f" {added:.1f} KiB each",
        requests=requests,
        kib_per_request=round(added, 2),
        mib=round(last / 1024, 1),
    )
