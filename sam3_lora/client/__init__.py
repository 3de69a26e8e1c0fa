"""A client of the training service, for programs: `Client`, and `AsyncClient` where there is an event loop.

```python
from sam3_lora.client import Client

with Client("http://127.0.0.1:8000") as client:
    dataset = client.datasets.upload("pallets/").wait()
    job = client.jobs.create(dataset, config={"training": {"max_epochs": 5}}).wait(progress=True)
    job.download("adapter")
    print(job.model().predict("photo.jpg", "pallet").results)
```
"""

from sam3_lora.client._async.client import AsyncClient
from sam3_lora.client._sync.client import Client

__all__ = ["AsyncClient", "Client"]
