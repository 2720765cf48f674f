"""What stands between a route and a backend.

Glossary. A *route* says which requests go where; an *upstream* is one backend as routes name it; its *targets* are the
addresses that it is reached at. An *exchange* is one request sent to a target and its answer. It is *working* while the
target is busy with it and *held* while the target keeps it open on purpose (a long poll, a stream): a held one costs a
target next to nothing, so the two are bounded and weighed apart. How an exchange ended is its *verdict*. A request may take
several *attempts*, each an exchange of its own; a *budget* bounds how many of them there are beyond the first.

A target is *available* when active checks find it healthy, it is not ejected and its breaker lets it through. *Ejection*
takes one target away for a while because it fails where others do not; a *breaker* gives a target rest and then tries it
with single requests.
"""
