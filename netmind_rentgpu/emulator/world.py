"""`World`: the questions that the service's documentation leaves open, as switches with every plausible answer as a value.

Each switch is an open question of `netmind_rentgpu/guide/explanation/wire-contract.md`. Its first value is the default: the
documented answer if there is one, otherwise the plainest answer.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

import attrs

__all__ = ["World"]

Token: TypeAlias = Literal["bearer", "bare"]
BadToken: TypeAlias = Literal["403 error", "403 message", "401 detail"]
Limit: TypeAlias = Literal["100", "50", "10", "5", "none"]
OverLimit: TypeAlias = Literal["clamp", "refuse"]
Order: TypeAlias = Literal["ascending", "descending"]
Marker: TypeAlias = Literal["exclusive", "inclusive"]
DeadMarker: TypeAlias = Literal["by value", "empty page", "first page", "404"]
ListLag: TypeAlias = Literal["none", "20 s"]
Stamps: TypeAlias = Literal["zone", "naive", "space", "missing"]
DeleteAnswer: TypeAlias = Literal["object", "null", "empty", "204"]
SecondDelete: TypeAlias = Literal["404", "200", "400", "409"]
SSHForm: TypeAlias = Literal["ssh user@host -p port", "ssh -p port user@host", "host:port", "url", "other text"]
NotYet: TypeAlias = Literal["empty", "null", "absent"]
Services: TypeAlias = Literal["empty", "null", "absent", "url"]
GPUName: TypeAlias = Literal["number", "text"]
OptionalFields: TypeAlias = Literal["there", "null", "absent"]
Numbers: TypeAlias = Literal["integers", "floats"]
Prices: TypeAlias = Literal["text", "number"]
NewFields: TypeAlias = Literal["no", "yes"]
Members: TypeAlias = Literal["usual", "new"]
ValidationErrors: TypeAlias = Literal["pydantic 1", "pydantic 2"]
Names: TypeAlias = Literal["any", "unique"]
LongNames: TypeAlias = Literal["kept", "cut at 24"]
BalanceRefusal: TypeAlias = Literal["400 detail", "403 code", "402 empty"]
StopBilling: TypeAlias = Literal["goes on", "ends"]
RestartPort: TypeAlias = Literal["kept", "changed"]
RestartHostKey: TypeAlias = Literal["kept", "changed"]
Errors: TypeAlias = Literal["json", "html from a gateway"]
AlteredNames: TypeAlias = Literal["no", "upper case", "prefix", "suffix"]
CreateAnswer: TypeAlias = Literal["its own", "another"]
Ids: TypeAlias = Literal["new", "reused"]
DeleteLag: TypeAlias = Literal["none", "20 s", "forever"]
Deleted: TypeAlias = Literal["gone", "listed"]
OtherAccounts: TypeAlias = Literal["404", "403"]


def _switch(values: Any, *, in_presets: bool = True) -> Any:
    choices = get_args(values)
    metadata = {"values": choices, "in_presets": in_presets}
    return attrs.field(default=choices[0], validator=_one_of, metadata=metadata)


def _one_of(_: object, field: attrs.Attribute[Any], value: object) -> None:
    choices = field.metadata["values"]
    if value not in choices:
        raise ValueError(f"{field.name} must be one of {', '.join(map(repr, choices))}, not {value!r}")


@attrs.frozen(kw_only=True)
class World:
    """The behaviour of an emulated service where the documentation is silent.

    Attributes:
        token: the form of the API token in the `Authorization` header.
        bad_token: the answer to a wrong token.
        limit: the largest number of items in a page.
        over_limit: the answer to a request for a larger page.
        order: the order of lists by id.
        marker: "inclusive" if a page begins with the marker's own item.
        dead_marker: the answer to a marker whose item was deleted.
        list_lag: the time until the list shows a new container.
        stamps: the form of `created_at`.
        delete_answer: the answer to a delete.
        second_delete: the answer to a delete of a deleted container.
        ssh, ssh_not_yet: the form of a container's `ssh`, and its form before the container runs.
        services: the form of a container's `exposed_service`, `vscode_service` and `jupyter_service`.
        gpu_name: the form of a container's `gpu_name`.
        optional_fields: the form of fields that a renter can do without.
        numbers: the JSON form of whole numbers.
        prices: the JSON form of prices.
        new_fields: "yes" to add undocumented fields.
        members: "new" for container statuses that are not the usual ones.
        validation_errors: the form of a 422. The form "pydantic 2" repeats the rejected value.
        names: "unique" if no two containers of an account can have the same name.
        long_names: "cut at 24" if the service cuts a container's name after 24 characters.
        balance_refusal: the answer to a create that the balance does not allow.
        stop_billing: "ends" if a stopped container costs nothing.
        restart_port, restart_host_key: "kept" or "changed" by a restart.
        errors: the form of errors that may come from a gateway in front of the service.
        altered_names: the service's change to a container's name. Presets do not vary this switch and the following ones.
        create_answer: the container in the answer to a create; "another" shows another container if there is one.
        ids: "reused" if a new container can have the id of a deleted container.
        delete_lag: the time from the answer to a delete until its effect. Until then the container is shown and costs money.
        deleted: "listed" if the service still shows deleted containers, which cost nothing any more.
        other_accounts: the answer to a request for a resource of another account.
    """

    token: Token = _switch(Token)
    bad_token: BadToken = _switch(BadToken)
    limit: Limit = _switch(Limit)
    over_limit: OverLimit = _switch(OverLimit)
    order: Order = _switch(Order)
    marker: Marker = _switch(Marker)
    dead_marker: DeadMarker = _switch(DeadMarker)
    list_lag: ListLag = _switch(ListLag)
    stamps: Stamps = _switch(Stamps)
    delete_answer: DeleteAnswer = _switch(DeleteAnswer)
    second_delete: SecondDelete = _switch(SecondDelete)
    ssh: SSHForm = _switch(SSHForm)
    ssh_not_yet: NotYet = _switch(NotYet)
    services: Services = _switch(Services)
    gpu_name: GPUName = _switch(GPUName)
    optional_fields: OptionalFields = _switch(OptionalFields)
    numbers: Numbers = _switch(Numbers)
    prices: Prices = _switch(Prices)
    new_fields: NewFields = _switch(NewFields)
    members: Members = _switch(Members)
    validation_errors: ValidationErrors = _switch(ValidationErrors)
    names: Names = _switch(Names)
    long_names: LongNames = _switch(LongNames)
    balance_refusal: BalanceRefusal = _switch(BalanceRefusal)
    stop_billing: StopBilling = _switch(StopBilling)
    restart_port: RestartPort = _switch(RestartPort)
    restart_host_key: RestartHostKey = _switch(RestartHostKey)
    errors: Errors = _switch(Errors)
    altered_names: AlteredNames = _switch(AlteredNames, in_presets=False)
    create_answer: CreateAnswer = _switch(CreateAnswer, in_presets=False)
    ids: Ids = _switch(Ids, in_presets=False)
    delete_lag: DeleteLag = _switch(DeleteLag, in_presets=False)
    deleted: Deleted = _switch(Deleted, in_presets=False)
    other_accounts: OtherAccounts = _switch(OtherAccounts, in_presets=False)

    @classmethod
    def switches(cls, *, in_presets: bool = False) -> dict[str, tuple[str, ...]]:
        """Return every switch and its values, the default first.

        Args:
            in_presets: True for only the switches that presets vary.
        """
        return {
            field.name: field.metadata["values"]
            for field in attrs.fields(cls)
            if field.metadata["in_presets"] or not in_presets
        }
