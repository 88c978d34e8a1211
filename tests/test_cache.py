"The image cache when sources change, files break, disks are full, processes are killed, and several start at once"
import io, json, os, shutil, signal, subprocess, sys, time
from contextlib import redirect_stdout
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from common import child, code, dies_of_a_worker
import gmml_nb.cache as C
from gmml_nb.data import pretrain_dls
from gmml_nb.pretrain import gmml_learner

N = 12

@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('GMML_CACHE', str(tmp_path/'cache'))
    return tmp_path/'cache'

@pytest.fixture
def photos(tmp_path):
    root = tmp_path/'photos'
    root.mkdir()
    for i in range(N): picture(root/f'{i:02}.jpg', i)
    return root

def picture(path, i=0, hw=(40, 60)): Image.fromarray(np.full((*hw, 3), 20*i, np.uint8)).save(path, quality=90)

def run(source, **kw):
    "Loaders, all their pixels in order, and what was printed"
    out = io.StringIO()
    with redirect_stdout(out): dls = pretrain_dls(source, **{**dict(size=16, bs=4, valid_pct=0, device='cpu'), **kw})
    return dls, dls.train.dataset.batch(range(len(dls.train.dataset)))[0], out.getvalue()

def stored_files(cache): return sorted(cache.glob('*.safetensors'))

@pytest.fixture
def decoded(monkeypatch):
    "Names of the files that are decoded"
    names, read = [], C.read_stored
    def spy(f, *args, **kw):
        names.append(Path(f).name)
        return read(f, *args, **kw)
    monkeypatch.setattr(C, 'read_stored', spy)
    return names


def test_second_run_decodes_nothing(photos, cache, decoded):
    dls, x, said = run(photos, valid_pct=.25)
    assert len(decoded) == N and '12 images of 40 x 60 px' in said and 'decoded in' in said
    again, y, said = run(photos, valid_pct=.25)
    assert len(decoded) == N and 'reused' in said and said.count('\n') == 3
    assert torch.equal(x, y) and torch.equal(x.hw, y.hw) and x.hw.tolist() == [[40, 60]]*9
    assert all(torch.equal(a, b) for a, b in zip(dls.stats, again.stats))
    for a, b in [*zip(dls.train, again.train), *zip(dls.valid, again.valid)]: assert torch.equal(a[0], b[0])


def touch(root): os.utime(root/'03.jpg')
def add(root): picture(root/'new.jpg')
def remove(root): os.remove(root/'03.jpg')
def replace(root):
    "By another picture, in as many bytes"
    old = (root/'03.jpg').read_bytes()
    picture(root/'x.jpg', 11)
    new = (root/'x.jpg').read_bytes().ljust(len(old), b'\0')[:len(old)]
    os.remove(root/'x.jpg')
    (root/'03.jpg').write_bytes(new)
def rename(root): os.rename(root/'03.jpg', root/'30.jpg')

@pytest.mark.parametrize('change,said,n', [(touch, '1 changed', N), (add, '1 added', N+1), (remove, '1 removed', N-1),
                                           (replace, '1 changed', N), (rename, '1 added, 1 removed', N)], ids=lambda o: getattr(o, '__name__', ''))
def test_a_changed_source_is_noticed(photos, cache, decoded, change, said, n):
    _, x, _ = run(photos)
    decoded.clear(), change(photos)
    _, y, out = run(photos)
    assert f'{said}. Decoding again' in out and len(decoded) == n == len(y)
    assert torch.equal(y, run(photos, cache='ram')[1])
    assert change is touch or y.shape != x.shape or not torch.equal(x, y)
    assert 'reused' in run(photos)[2] and len(stored_files(cache)) == 1


def test_what_decides_on_the_pixels_decides_on_the_file(photos, cache):
    for kw in (dict(), dict(size=8), dict(store=20), dict(store=(20, 30)), dict(in_chans=1), dict(idxs=range(4)), dict(idxs=range(5))): run(photos, **kw)
    assert len(stored_files(cache)) == 7
    files = sorted(map(str, photos.iterdir()))
    assert 'decoded' in run(files)[2] and 'reused' in run(files)[2] and 'decoded' in run(files[::-1])[2]
    assert 'reused' in run(photos, seed=3, bs=2, valid_pct=.5)[2] # these do not


def test_a_damaged_file_is_made_anew(photos, cache):
    _, x, _ = run(photos)
    path, = stored_files(cache)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    damages = [b'', b'GIF89a', os.urandom(3000), whole[:1], whole[:-1], whole + b'\0', bytes(len(whole)), b'\xff'*8 + whole[8:],
               *(whole[:n] for n in rng.integers(2, len(whole)-1, 12))]
    for i in range(12): # bytes of the header are flipped
        b = bytearray(whole)
        b[rng.integers(0, 400)] ^= 1 << rng.integers(0, 8)
        damages.append(bytes(b))
    for b in damages:
        path.write_bytes(b)
        _, y, said = run(photos)
        assert torch.equal(x, y) and len(said.splitlines()) in (2, 3)
        assert 'Decoding again' in said or 'reused' in said # a flip may keep its meaning: of a space, say
        assert b != whole[:len(b)] or 'Decoding again' in said or len(b) == len(whole)


def test_pixels_are_mapped_not_read(photos, cache):
    run(photos)
    path, = stored_files(cache)
    s = C.open_stored(path)
    before = [l for l in Path('/proc/self/maps').read_text().splitlines() if str(path) in l] if Path('/proc/self/maps').exists() else None
    assert before is None or before
    assert s.pixels.untyped_storage().nbytes() >= s.pixels.nbytes


def test_unreadable_files_are_reported_by_every_run(photos, cache, decoded):
    (photos/'99.jpg').write_text('a note to myself')
    for _ in range(2):
        with pytest.raises(ValueError, match='1 of 13 images(.|\n)*99.jpg'): run(photos)
        with pytest.warns(UserWarning, match='99.jpg'): dls, x, said = run(photos, on_error='skip')
        assert len(dls.train.dataset) == len(x) == N and '12 images' in said
    assert decoded.count('00.jpg') == 1


def test_an_unreadable_file_that_can_be_read_now(photos, cache):
    "Even where neither its size nor its time has changed"
    bad = photos/'99.jpg'
    picture(bad, 5)
    whole, facts = bad.read_bytes(), os.stat(bad)
    bad.write_bytes(b'\0'*len(whole)); os.utime(bad, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    with pytest.raises(ValueError, match='99.jpg'): run(photos)
    bad.write_bytes(whole); os.utime(bad, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    _, x, said = run(photos)
    assert '1 readable now' in said and len(x) == N+1 and abs(int(x[-1].max()) - 100) < 3


def slowly(photos, seconds):
    read = C.read_stored
    def slow(*args, **kw):
        time.sleep(seconds)
        return read(*args, **kw)
    C.read_stored = slow
    pretrain_dls(photos, size=16, valid_pct=0, device='cpu')

def test_killed_while_it_writes(photos, cache):
    "Neither the half-written file nor the lock of the dead stands in the way"
    _, x, _ = run(photos, cache='ram')
    for wait in (.3, .6):
        pid = child(lambda: slowly(photos, .5))
        while not list(cache.glob('*.part')): time.sleep(.02)
        time.sleep(wait)
        os.kill(pid, signal.SIGKILL)
        assert code(pid) == -signal.SIGKILL and not stored_files(cache)
    _, y, said = run(photos)
    assert torch.equal(x, y) and 'decoded in' in said and not list(cache.glob('*.part'))


SCRIPT = '''
import sys, time, torch
import gmml_nb.cache as C
from gmml_nb.data import pretrain_dls
read = C.read_stored
def slow(f, *args):
    time.sleep(.1)
    with open(sys.argv[2], 'a') as o: o.write('x')
    return read(f, *args)
C.read_stored = slow
dls = pretrain_dls(sys.argv[1], size=16, valid_pct=0, device='cpu')
print('sum', dls.train.dataset.batch(range(len(dls.train.dataset)))[0].sum().item())
'''

def test_several_processes_at_once(photos, cache, tmp_path):
    "One decodes, the others wait and reuse"
    args = [sys.executable, '-W', 'ignore', '-c', SCRIPT, str(photos), str(tmp_path/'count')]
    ps = [subprocess.Popen(args, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outs = [p.communicate(timeout=120)[0] for p in ps]
    assert all(p.returncode == 0 for p in ps) and (tmp_path/'count').read_text() == 'x'*N
    assert sum('decoded in' in o for o in outs) == 1 and sum('reused' in o for o in outs) == 2
    assert len({o.splitlines()[-1] for o in outs}) == 1


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    "A file system of 256 KiB"
    d = tmp_path/'small'
    d.mkdir()
    if not shutil.which('mount') or subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', str(d)], capture_output=True).returncode:
        pytest.skip('may not mount a file system')
    monkeypatch.setenv('GMML_CACHE', str(d))
    yield d
    subprocess.run(['umount', '-l', str(d)], check=True)

@pytest.mark.parametrize('known', [True, False], ids=['seen at once', 'filled while writing'])
def test_full_disk(photos, small_disk, monkeypatch, known):
    _, x, _ = run(photos, size=64, store=100, cache='ram') # 351 KiB
    if not known: monkeypatch.setattr(C.shutil, 'disk_usage', lambda p: shutil._ntuple_diskusage(2**40, 0, 2**40))
    _, y, said = run(photos, size=64, store=100)
    assert torch.equal(x, y) and 'no cache file is written' in said and 'kept in RAM' in said
    with pytest.raises(ValueError, match="cache='disk'(.|\n)*GMML_CACHE"): run(photos, size=64, store=100, cache='disk')
    assert not list(small_disk.glob('*.part')) and not stored_files(small_disk)
    monkeypatch.setattr(C, 'free_memory', lambda: 1000)
    dls, y, said = run(photos, size=64, store=100)
    assert torch.equal(x, y) and 'read anew in every epoch' in said and isinstance(dls.train.dataset.items[0], str)


def test_default_folder(monkeypatch, tmp_path):
    monkeypatch.delenv('GMML_CACHE')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert C.cache_folder() == tmp_path/'gmml_nb'


def test_ten_thousand_files_again(tmp_path, cache):
    "Nothing is decoded and no pixel read: in a second or so (3,000 files here)"
    root = tmp_path/'many'
    root.mkdir()
    picture(root/'0.png', 1, (8, 8))
    for i in range(1, 3000): os.link(root/'0.png', root/f'{i}.png')
    run(root, size=8, bs=64)
    t = time.perf_counter()
    _, _, said = run(root, size=8, bs=64)
    assert 'reused' in said and time.perf_counter() - t < 1


def test_every_kind_gives_the_same_batches(photos, cache):
    kinds = [dict(cache=o) for o in C.CACHES] + [dict(cache=None, num_workers=2)]
    runs = [run(photos, seed=5, **kw)[0] for kw in kinds]
    for _ in range(3):
        for bs in zip(*(o.train for o in runs)): assert all(torch.equal(bs[0][0], b[0]) and torch.equal(bs[0][0].hw, b[0].hw) for b in bs)


def test_workers_that_die_are_an_error(photos):
    def f():
        dls = run(photos, cache=None, num_workers=1)[0]
        next(iter(dls.train))
        os.kill(dls.train.pool._iterator._workers[0].pid, signal.SIGKILL)
        for _ in range(3): list(dls.train)
    assert dies_of_a_worker(f)


def test_a_file_that_vanishes_while_training_is_named(photos):
    for kw in (dict(), dict(num_workers=1)):
        picture(photos/'05.jpg')
        dls = run(photos, cache=None, **kw)[0]
        os.remove(photos/'05.jpg')
        with pytest.raises(Exception, match='05.jpg'): list(dls.train)


def test_export_leaves_the_pixels_behind(photos, cache, tmp_path):
    dls = run(photos, size=16, store=200)[0]
    learn = gmml_learner(dls, 'vit_tiny_patch16_224', patch_size=8, blocks=(1, 2), path=tmp_path, model_args=dict(embed_dim=16, depth=2, num_heads=2))
    with learn.no_bar(), learn.no_logging(): learn.fit_gmml(1, estimate=False)
    learn.export('m.pkl')
    assert (tmp_path/'m.pkl').stat().st_size < 400_000 < dls.train.dataset.pixels.nbytes


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')

@gpu
def test_on_the_gpu(photos, cache, monkeypatch):
    _, x, _ = run(photos, cache='ram')
    for c in ('auto', 'device'):
        dls, y, said = run(photos, cache=c, device='cuda')
        assert y.is_cuda and y.hw.is_cuda and 'on cuda:0' in said and torch.equal(x, y.cpu()) and torch.equal(x.hw, y.hw.cpu())
        assert all(b[0].is_cuda and b[0].hw.is_cuda for b in dls.train)
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda d: (2*x.nbytes, 0))
    assert not run(photos, device='cuda')[0].train.dataset.all.is_cuda
    assert run(photos, cache='device', device='cuda')[0].train.dataset.all.is_cuda
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda d: (1000, 0))
    with pytest.raises(ValueError, match="cache='device' needs"): run(photos, cache='device', device='cuda')
    monkeypatch.undo()
    learn = gmml_learner(dls, 'vit_tiny_patch16_224', patch_size=8, blocks=(1, 2), model_args=dict(embed_dim=16, depth=2, num_heads=2))
    with learn.no_bar(), learn.no_logging(): learn.fit_gmml(2, estimate=False)
    assert np.isfinite(learn.recorder.losses).all()


def test_what_goes_to_a_gpu(monkeypatch):
    "As a machine without one can tell"
    x, free = torch.zeros(100, 100, dtype=torch.uint8), [0]
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda d: (free[0], 0))
    monkeypatch.setattr(torch.Tensor, 'to', lambda self, d: f'moved to {d}')
    def where(cache, nbytes, device='cuda:0'):
        free[0] = nbytes
        return C.on_device(x, cache, device)
    assert where('auto', 33_000) is x and where('auto', 34_000) == where('device', 10_000) == 'moved to cuda:0'
    assert all(where(o, 2**30) is x for o in ('disk', 'ram', None)) and where('device', 0, 'cpu') is x
    assert where('auto', 0, 'mps') is x and where('device', 0, 'mps') == 'moved to mps'
    with pytest.raises(ValueError, match="cache='disk'"): where('device', 9_999)


def test_the_same_folder_by_another_path(photos, cache, monkeypatch):
    run(photos)
    monkeypatch.chdir(photos.parent)
    assert 'reused' in run('photos/')[2] and 'reused' in run(Path('./photos'))[2] and len(stored_files(cache)) == 1
