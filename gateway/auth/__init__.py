"""Who is calling, and what that caller may do.

Glossary. An *issuer* is somebody whose tokens we trust, known by a short *alias*; it has *keys*, each pinned to one
algorithm, that come from *sources* (inline, a file, a JWKS URL). A *principal* is an issuer's alias and the token's `sub`.
A key is *withdrawn* when no source of its issuer lists it any longer. A *rule* decides whether a principal may use a
channel; a *template* derives text, such as a record key, from path parameters and claims.

An *API key* is a secret that stands for a principal of the alias `apikeys`, with no issuer behind it.
"""
