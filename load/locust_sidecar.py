"""One app and its sidecar: a single tenant on localhost, steady, half of it streamed.

`make load-sidecar` runs it against the simulator and judges it; by hand:
`build/locust/bin/locust -f load/locust_sidecar.py --host http://127.0.0.1:8080`.
"""

from __future__ import annotations

from load.locust_outcome import Wish
from load.locust_user import GatewayUser, Tenant, chat, tenants_of

TENANT = "app"
QUESTION = "Which of our orders are late, and why? Answer in two sentences."


class App(GatewayUser):
    host = "http://127.0.0.1:8080"

    def cast(self) -> tuple[list[Tenant], list[float]]:
        options = self.environment.parsed_options
        key = next((tenant.key for tenant in tenants_of(options)), None)
        metadata = {} if key else {"metadata": {"tenant": TENANT}}
        plain = chat(options.model, QUESTION, **metadata)
        streamed = chat(options.model, QUESTION, stream=True, **metadata)
        wishes = [Wish("plain", 45, plain), Wish("streamed", 45, streamed, stream=True)]
        if self.stage.direct is not None:
            wishes += [
                Wish("plain", 4, chat(options.model, QUESTION), direct=True),
                Wish("streamed", 6, chat(options.model, QUESTION, stream=True), stream=True, direct=True),
            ]
        return [Tenant(TENANT, key, wishes)], [1.0]
