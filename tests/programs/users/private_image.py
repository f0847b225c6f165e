"""A private image with an exposed port: created once, found again, and used."""

from netmind_rentgpu import Image, RentGPU


def image(gpu: RentGPU) -> Image:
    return gpu.images.ensure(
        name="model-server",
        image_name="registry.example.org/team/model-server",
        image_tag="1.2",
        image_label="model server",
        docker_username="robot",
        docker_passwd="a-registry-secret",
        docker_registry="https://registry.example.org/",
        public_port="8080",
        onstart="serve --port 8080",
        options="-e MODE=production",
    )


with RentGPU() as gpu:
    mine = image(gpu)
    assert image(gpu).id == mine.id
    assert mine.public_port == "8080"
    assert [found.id for found in gpu.images.list(image_type="custom")] == [mine.id]
    assert "a-registry-secret" not in f"{mine!r} {mine} {mine.to_dict()}"
    with gpu.rent(gpu_name="RTX 4090", image=mine) as rental:
        assert rental.container.image_template_id == mine.id
        print(rental.container.exposed_service)
        forward = rental.shell.forward(local_port=0, remote_port=8080)
        assert forward.port > 0
    print("done")
