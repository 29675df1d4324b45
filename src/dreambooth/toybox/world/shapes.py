"""Triangle meshes of simple solids, and a `Model` that gathers them under materials. Plain numpy; z is up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Vector = Sequence[float] | Array
Size = float | Vector


@dataclass(frozen=True, eq=False)
class Material:
    """Linear reflectance as one colour or as a texture (H, W, 3), and a finish the renderer knows."""

    colour: tuple[float, float, float] = (0.5, 0.5, 0.5)
    finish: str = "matte"
    texture: Array | None = None


@dataclass(frozen=True, eq=False)
class Mesh:
    """Vertices, unit normals (both V, 3), texture coordinates (V, 2) and faces (F, 3)."""

    vertices: Array
    normals: Array
    uv: Array
    faces: Array

    def moved(self, matrix: Array) -> Mesh:
        """The mesh under an affine (4, 4) matrix."""
        normals = self.normals @ np.linalg.inv(matrix[:3, :3])
        lengths = np.linalg.norm(normals, axis=1, keepdims=True)
        vertices = self.vertices @ matrix[:3, :3].T + matrix[:3, 3]
        return Mesh(vertices, normals / np.maximum(lengths, 1e-9), self.uv, self.faces)

    def tiled(self, repeats: Size) -> Mesh:
        """The mesh with its texture repeated."""
        return Mesh(self.vertices, self.normals, self.uv * np.asarray(repeats), self.faces)


def merge(meshes: Sequence[Mesh]) -> Mesh:
    """One mesh out of several."""
    starts = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes[:-1]])
    return Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([mesh.normals for mesh in meshes]),
        np.concatenate([mesh.uv for mesh in meshes]),
        np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts, strict=True)]),
    )


def translate(offset: Vector) -> Array:
    """Matrix of a shift."""
    matrix = np.eye(4)
    matrix[:3, 3] = offset
    return matrix


def scale(size: Size) -> Array:
    """Matrix of a scaling, the same or per axis."""
    return np.diag([*np.broadcast_to(np.asarray(size, float), 3), 1.0])


def rotate(axis: str, degrees: float) -> Array:
    """Matrix of a right-handed turn about "x", "y" or "z"."""
    first, second = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(4)
    angle = np.radians(degrees)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[second, first] = np.sin(angle)
    matrix[first, second] = -np.sin(angle)
    return matrix


def along(start: Vector, end: Vector, radius: float) -> Array:
    """Matrix that lays the unit cylinder (radius 1, z from 0 to 1) from `start` to `end`."""
    axis = np.subtract(end, start)
    length = float(np.linalg.norm(axis))
    third = axis / length
    first = np.cross([0, 1, 0] if abs(third[1]) < 0.9 else [1, 0, 0], third)
    first /= np.linalg.norm(first)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([first * radius, np.cross(third, first) * radius, axis], axis=1)
    matrix[:3, 3] = start
    return matrix


def revolve(profile: Sequence[tuple[float, float]], sectors: int = 20) -> Mesh:
    """Turn a profile of (radius, z), outside from bottom to top, about z. A point given twice makes a sharp edge."""
    points = np.asarray(profile, float)
    steps = np.diff(points, axis=0)
    lengths = np.hypot(*steps.T)
    slopes = np.stack([steps[:, 1], -steps[:, 0]], axis=1) / np.maximum(lengths, 1e-9)[:, None]
    slopes[lengths < 1e-9] = 0
    across = np.zeros_like(points)
    across[:-1] += slopes
    across[1:] += slopes
    across /= np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-9)
    travelled = np.r_[0, np.cumsum(lengths)] / lengths.sum()
    angles = np.linspace(0, 2 * np.pi, sectors + 1)[:, None]
    vertices, normals = (
        np.stack([part[:, 0] * np.cos(angles), part[:, 0] * np.sin(angles), 0 * angles + part[:, 1]], -1).reshape(-1, 3)
        for part in (points, across)
    )
    uv = np.stack(np.broadcast_arrays(angles / (2 * np.pi), travelled), -1).reshape(-1, 2)
    return Mesh(vertices, normals, uv, _quads(sectors + 1, len(points)))


def _quads(rows: int, columns: int) -> Array:
    """Two triangles for each cell of a grid of vertices."""
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).reshape(-1, 1)
    return np.concatenate([corner + np.array(cell) for cell in ((0, columns, 1), (columns, columns + 1, 1))])


@cache
def sphere() -> Mesh:
    """Radius 1."""
    angles = np.linspace(-np.pi / 2, np.pi / 2, 13)
    return revolve([(max(np.cos(angle), 1e-4), np.sin(angle)) for angle in angles])


@cache
def cylinder(sectors: int = 20) -> Mesh:
    """Radius 1, z from 0 to 1, closed."""
    return revolve([(1e-4, 0), (1, 0), (1, 0), (1, 1), (1, 1), (1e-4, 1)], sectors)


@cache
def cube() -> Mesh:
    """Every coordinate from -1 to 1; each face has its own texture square."""
    square = np.array([[-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]], float)
    uv = (square[:, :2] + 1) / 2
    face = Mesh(square, np.tile([0.0, 0.0, 1.0], (4, 1)), uv, np.array([[0, 1, 2], [0, 2, 3]]))
    turns = [np.eye(4), rotate("x", 180)]
    turns += [rotate("z", quarter) @ rotate("x", 90) for quarter in (0, 90, 180, 270)]
    return merge([face.moved(turn) for turn in turns])


def sheet(half: float, cells: int, height: Callable[[Array, Array], Array]) -> Mesh:
    """A square cloth, x and y from -half to half, z = height(x, y); texture coordinates are x and y."""
    line = np.linspace(-half, half, cells + 1)
    x, y = (part.ravel() for part in np.meshgrid(line, line, indexing="ij"))
    small = 1e-3
    slope_x = (height(x + small, y) - height(x - small, y)) / (2 * small)
    slope_y = (height(x, y + small) - height(x, y - small)) / (2 * small)
    normals = np.stack([-slope_x, -slope_y, np.ones_like(x)], axis=1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    vertices = np.stack([x, y, height(x, y)], axis=1)
    return Mesh(vertices, normals, vertices[:, :2].copy(), _quads(cells + 1, cells + 1))


@dataclass
class Model:
    """Solids under materials. `blocky` replaces every round solid by a square one of the same extent."""

    parts: list[tuple[Material, Mesh]] = field(default_factory=list)
    blocky: bool = False

    def mesh(self, mesh: Mesh, material: Material, matrix: Array | None = None) -> None:
        """Any mesh, moved by a matrix."""
        self.parts.append((material, mesh if matrix is None else mesh.moved(matrix)))

    def ball(self, centre: Vector, radii: Size, material: Material, turn: Array | None = None) -> None:
        """Ellipsoid with half axes `radii`, turned before it is put at `centre`."""
        place = translate(centre) @ (np.eye(4) if turn is None else turn) @ scale(radii)
        if self.blocky:
            place = place @ scale(0.85)
        self.mesh(cube() if self.blocky else sphere(), material, place)

    def rod(self, start: Vector, end: Vector, radius: float, material: Material) -> None:
        """Closed cylinder between two points."""
        square = np.eye(4) if not self.blocky else translate((0, 0, 0.5)) @ scale((0.85, 0.85, 0.5))
        self.mesh(cube() if self.blocky else cylinder(), material, along(start, end, radius) @ square)

    def limb(self, start: Vector, end: Vector, radius: float, material: Material) -> None:
        """Cylinder with round ends."""
        self.rod(start, end, radius, material)
        if not self.blocky:
            self.ball(start, radius, material)
            self.ball(end, radius, material)

    def box(self, centre: Vector, half: Size, material: Material, turn: Array | None = None) -> None:
        """Box with half edges `half`."""
        place = translate(centre) @ (np.eye(4) if turn is None else turn) @ scale(half)
        self.mesh(cube(), material, place)

    def lathe(
        self,
        profile: Sequence[tuple[float, float]],
        material: Material,
        at: Vector = (0, 0, 0),
        turn: Array | None = None,
    ) -> None:
        """Solid of revolution about a vertical axis through `at`."""
        place = translate(at) @ (np.eye(4) if turn is None else turn)
        if self.blocky:
            place = place @ rotate("z", 45)
        self.mesh(revolve(profile, 4 if self.blocky else 20), material, place)

    def cone(self, base: Vector, radius: float, height: float, material: Material, turn: Array | None = None) -> None:
        """Upright cone; `turn` tilts it about the centre of its base."""
        self.lathe([(1e-4, 0), (radius, 0), (radius, 0), (1e-3, height)], material, base, turn)

    def ring(self, centre: Vector, radius: float, tube: float, material: Material, axis: str = "z") -> None:
        """Torus about an axis through its centre."""
        angles = np.linspace(-np.pi, np.pi, 9)
        turn = {"z": np.eye(4), "x": rotate("y", 90), "y": rotate("x", 90)}[axis]
        profile = [(radius + tube * np.cos(angle), tube * np.sin(angle)) for angle in angles]
        self.lathe(profile, material, centre, turn)

    def extend(self, other: Model, matrix: Array) -> None:
        """Another model's solids, moved."""
        self.parts += [(material, mesh.moved(matrix)) for material, mesh in other.parts]

    def moved(self, matrix: Array) -> Model:
        """The whole model under a matrix."""
        return Model([(material, mesh.moved(matrix)) for material, mesh in self.parts], self.blocky)

    def bounds(self) -> tuple[Array, Array]:
        """Lowest and highest corner."""
        points = np.concatenate([mesh.vertices for _, mesh in self.parts])
        return points.min(axis=0), points.max(axis=0)

    def by_material(self) -> list[tuple[Material, Mesh]]:
        """One mesh for each material."""
        groups: dict[Material, list[Mesh]] = {}
        for material, mesh in self.parts:
            groups.setdefault(material, []).append(mesh)
        return [(material, merge(meshes)) for material, meshes in groups.items()]
