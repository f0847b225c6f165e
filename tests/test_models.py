"""Models as immutable values, and the parsing of SSH endpoints."""

import copy
import pickle

import attrs
import pytest

from netmind_rentgpu import Auth, Container, Image, ImageType, Machine, PaymentType, SSHEndpoint


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("ssh root@host.example -p 30022", SSHEndpoint("host.example", 30022, "root")),
        ("ssh -p 30022 root@host.example", SSHEndpoint("host.example", 30022, "root")),
        ("ssh -p30022 root@host.example", SSHEndpoint("host.example", 30022, "root")),
        ("ssh host.example -p 30022 -l root", SSHEndpoint("host.example", 30022, "root")),
        ("ssh -o StrictHostKeyChecking=no -i key root@10.0.0.7 -p 22", SSHEndpoint("10.0.0.7", 22, "root")),
        ("ssh -v root@host.example", SSHEndpoint("host.example", 22, "root")),
        ("  ssh  root@host.example  -p  30022 \n", SSHEndpoint("host.example", 30022, "root")),
        ("ssh ssh://root@host.example:30022", SSHEndpoint("host.example", 30022, "root")),
        ("host.example:30022", SSHEndpoint("host.example", 30022)),
        ("root@host.example:30022", SSHEndpoint("host.example", 30022, "root")),
        ("root@host.example", SSHEndpoint("host.example", 22, "root")),
        ("10.0.0.7:30022", SSHEndpoint("10.0.0.7", 30022)),
        ("ssh://root@host.example:30022", SSHEndpoint("host.example", 30022, "root")),
        ("ssh://host.example", SSHEndpoint("host.example")),
        ("ssh://root@[2001:db8::1]:30022", SSHEndpoint("2001:db8::1", 30022, "root")),
        ("[2001:db8::1]:30022", SSHEndpoint("2001:db8::1", 30022)),
        ("ssh -4tt root@h -p 2", SSHEndpoint("h", 2, "root")),
        ("ssh -4p 30022 root@h", SSHEndpoint("h", 30022, "root")),
        ("localhost:30022", SSHEndpoint("localhost", 30022)),
        ("ssh -o Port=30022 -o User=ubuntu host.example", SSHEndpoint("host.example", 30022, "ubuntu")),
        ("ssh -oPort=30022 -oUser=root gpu", SSHEndpoint("gpu", 30022, "root")),
        ("ssh -o 'Port 30022' -o 'user = root' gpu", SSHEndpoint("gpu", 30022, "root")),
        ("ssh -o 'User \"root\"' gpu", SSHEndpoint("gpu", 22, "root")),
        ("ssh root@gpu-7 -o HostName=10.0.0.7 -o PORT=30022", SSHEndpoint("10.0.0.7", 30022, "root")),
        # As with OpenSSH, the first of several counts.
        ("ssh -p 1 -o Port=2 root@h", SSHEndpoint("h", 1, "root")),
        ("ssh -o Port=2 -p 1 root@h", SSHEndpoint("h", 2, "root")),
        ("ssh root@h -l ubuntu", SSHEndpoint("h", 22, "root")),
        ("ssh -l ubuntu root@h", SSHEndpoint("h", 22, "ubuntu")),
        ("ssh ssh://h:30022 -p 1", SSHEndpoint("h", 30022)),
        (
            "ssh -i '~/my keys/id' -E log -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ServerAliveInterval=30 a@h",
            SSHEndpoint("h", 22, "a"),
        ),
        ("ssh root@h -p 2 nvidia-smi", None),
        ("ssh root@h -p 2 && ssh root@g", None),
        ("ssh root@h -p 30022\nssh root@g -p 30023", None),
        ("ssh root@h -p 30022\u2028password: secret", None),
        ("h.example:30022\ng.example:30023", None),
        ("ssh -J bastion root@gpu.example -p 2222", None),
        ("ssh -o ProxyJump=bastion root@gpu.example -p 2222", None),
        ("ssh -o ProxyCommand='nc %h %p' root@gpu.example", None),
        ("ssh -o proxycommand=nc root@gpu.example", None),
        ("ssh -L 8888:localhost:8888 root@gpu.example", None),
        ("ssh -b 10.0.0.1 root@gpu.example", None),
        ("ssh -o HostName=%h.example root@gpu", None),
        ("ssh -o Port=$PORT root@gpu.example", None),
        ("ssh -o Port root@gpu.example", None),
        ("ssh -o '' root@gpu.example", None),
        ("ssh -o User=-oProxyCommand=evil gpu.example", None),
        ("ssh -o HostName=-oProxyCommand=evil root@gpu.example", None),
        ("ssh -p 22 -- root@gpu.example", None),
        ("ssh 'root@gpu.example", None),
        ("ssh --port 22 root@gpu.example", None),
        ("N/A:0", None),
        ("n/a:22", None),
        ("host.example/a:22", None),
        ("host.example:22/a", None),
        ("root@host.example:22?a", None),
        ("root@host.example:22#a", None),
        ("ssh://root@host.example:22/a", None),
        ("T12:30", None),
        ("12h:30", None),
        ("error:404", None),
        ("v1.2:30", None),
        ("28.11:30", None),
        ("ssh -F none root@h -p 2", None),
        ("12:30", None),
        ("10.0.0:22", None),
        ("", None),
        ("   ", None),
        ("text", None),
        ("pending", None),
        ("not ready yet", None),
        ("ssh", None),
        ("ssh -p 30022", None),
        ("ssh root@host.example -p", None),
        ("ssh root@host.example -p many", None),
        ("host.example:0", None),
        ("host.example:65536", None),
        ("host.example:٣٠", None),
        ("https://host.example:30022", None),
        ("ssh -oProxyCommand=evil", None),
        ("ssh -p 22 --", None),
        ("-oProxyCommand=evil:22", None),
        ("root@-oProxyCommand=evil:22", None),
        ("-l@host.example:22", None),
        ("ssh -l -oProxyCommand=evil host.example", None),
        ("host;rm -rf:22", None),
        ("host`id`:22", None),
        ("ssh root@[::1", None),
    ],
)
def test_ssh_endpoint_is_parsed_from_every_form(text: str, endpoint: SSHEndpoint | None) -> None:
    assert SSHEndpoint.parse(text) == endpoint
    assert Container(id=1, ssh=text).ssh_endpoint == endpoint


def test_container_without_ssh_text_has_no_endpoint() -> None:
    assert Container(id=1).ssh_endpoint is None


@pytest.mark.parametrize("kind", [ImageType, PaymentType])
def test_enumerations_accept_unknown_numbers(kind: type[ImageType | PaymentType]) -> None:
    unknown = kind(17)
    assert (str(unknown), repr(unknown)) == ("17", f"{kind.__name__}(17)")
    assert unknown == kind(17)
    assert unknown != kind("17")
    assert len({unknown, kind(17)}) == 1
    assert pickle.loads(pickle.dumps(unknown)) == unknown
    for name in kind._members:
        member = getattr(kind, name)
        assert (str(member), repr(member)) == (name, f"{kind.__name__}.{name}")
        assert member == kind(name)
        assert pickle.loads(pickle.dumps(member)) == member
    assert ImageType("USD") != PaymentType("USD")


SECRETS = [
    (Auth(id=1, value="canary", extra={"value": "canary", "new": 1}), "value"),
    (
        Image(id=1, docker_passwd="canary", onstart="x", options="y", extra={"docker_passwd": 1, "new": 1}),
        "docker_passwd",
    ),
]


@pytest.mark.parametrize(("model", "field"), SECRETS, ids=["Auth", "Image"])
def test_secrets_are_in_no_repr_and_no_pickle(model: Auth | Image, field: str) -> None:
    assert "canary" not in f"{model} {model!r}"
    assert b"canary" not in pickle.dumps(model)
    again = pickle.loads(pickle.dumps(model))
    assert getattr(again, field) is None
    assert again.extra == {"new": 1}
    assert again == attrs.evolve(model, **{field: None}, extra={"new": 1})
    # A copy in the same process is the value itself.
    assert getattr(copy.copy(model), field) == getattr(copy.deepcopy([model])[0], field) == "canary"


def test_image_repr_hides_onstart_and_options() -> None:
    assert "HF_TOKEN" not in repr(Image(id=1, onstart="HF_TOKEN=1 run", options="-e HF_TOKEN=1"))


def test_models_are_immutable_values() -> None:
    first, other = Container(id=1, extra={"a": [1]}), Container(id=1, extra={"a": [1]})
    assert first == other
    assert hash(first) == hash(other)
    assert pickle.loads(pickle.dumps(first)) == first
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        first.id = 2  # type: ignore[misc]  # the test assigns on purpose
    assert pickle.loads(pickle.dumps(Machine(node_name="n", labels=("a",)))).labels == ("a",)
