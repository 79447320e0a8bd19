"""What ``torch.save`` writes, written without torch: for tests that may not import it."""

import io
import pickle
import zipfile

import numpy as np


class _Named:
    """Pickled as a reference to something by its name, as torch's own are."""

    def __init__(self, *name):
        self.name = name


class _Pickler(pickle._Pickler):
    """Tensors by a call, their storages by a reference."""

    def __init__(self, file):
        super().__init__(file, protocol=2)
        self.storages = []

    def save(self, value, *rest, **options):
        if isinstance(value, _Named):
            self.write(b"c" + b"\n".join(part.encode() for part in value.name) + b"\n")
        elif isinstance(value, np.ndarray):
            self._save_tensor(value)
        else:
            super().save(value, *rest, **options)

    def _save_tensor(self, array):
        """An array of int64; where a stride is 0 the storage has one value."""
        key = str(len(self.storages))
        is_expanded = 0 in array.strides
        storage = np.zeros(1, np.int64) if is_expanded else np.ascontiguousarray(array)
        array = array if is_expanded else storage
        self.storages.append(storage.tobytes())
        self.save(_Named("torch._utils", "_rebuild_tensor_v2"))
        self.write(b"(")
        self.save(("storage", _Named("torch", "LongStorage"), key, "cpu", storage.size))
        self.write(b"Q")
        for argument in (0, array.shape, tuple(step // 8 for step in array.strides)):
            self.save(argument)
        self.write(b"tR")


def torch_members(saved):
    """Members of the archive: ``saved`` is plain data with arrays of int64 for tensors."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(saved)
    storages = {f"t/data/{key}": data for key, data in enumerate(pickler.storages)}
    return {"t/data.pkl": file.getvalue(), **storages}


def torch_archive(path, saved):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in torch_members(saved).items():
            archive.writestr(name, content)
    return path
