"""Memory after many requests."""

import psutil

from infra.local.examine import responses
from infra.local.examine.finding import Finding, UnknownError, conclude
from infra.local.examine.lab import Lab, wait_until_frozen

#: Memory is first measured after this many requests, when caches are filled.
WARM_UP_REQUESTS = 100
#: The allowed growth for each request on average, in KiB: five MiB in 1,000 requests.
LIMIT_KIB = 5.0


async def memory(lab: Lab) -> Finding:
    requests = 500 if lab.inputs.fast else 1000
    sizes_kib = []
    async with lab.fleet(lab.direct()) as fleet:
        for number in range(1, requests + 1):
            result = await fleet.invoke(lab.event(number))
            if not lab.is_correct(number, result):
                raise UnknownError(f"request {number} failed: {responses.describe(result)}")
            if number in (WARM_UP_REQUESTS, requests):
                await wait_until_frozen(fleet)
                sizes_kib.append(psutil.Process(result.pid).memory_info().rss / 1024)
    first, last = sizes_kib
    growth = (last - first) / (requests - WARM_UP_REQUESTS)
    return conclude(
        growth <= LIMIT_KIB,
        f"{first / 1024:.1f} MiB after {WARM_UP_REQUESTS} requests, {last / 1024:.1f} after"
        f" {requests}: {growth:.1f} KiB for each",
        requests=requests,
        kib_per_request=round(growth, 2),
        mib=round(last / 1024, 1),
    )
