"gmml_pretrain on two processes: disjoint halves, corruption of their own, equal weights, one set of files"
import json, os, subprocess, sys
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from safetensors.numpy import load_file

SPY = '''
import json, os, sys
from fastai.callback.core import Callback
from fastai.torch_core import get_model, num_distrib, rank_distrib
from fastcore.basics import defaults
from gmml_nb.cli import gmml_pretrain
import gmml_nb.pretrain   # the learner's own callbacks are in place

class Images(Callback):
    "Which images come, before `GMML` (9.5) changes them: pixel (0, 0) is the number of the image"
    order = 9.4
    def before_fit(self): self.epochs, self.held_out = [], []
    def before_epoch(self): self.epochs.append([]), self.held_out.append([])
    def before_batch(self): (self.epochs if self.training else self.held_out)[-1].extend(self.xb[0][:, 0, 0, 0].tolist())

class Corruption(Callback):
    "What `GMML` made of them"
    order = 9.6
    def before_fit(self): self.masks = []
    def before_batch(self):
        if self.training: self.masks.append(self.yb[1][:, 0, ::2, ::2].flatten().int().tolist())
    def after_fit(self):
        w = {k: v.double().sum().item() for k,v in get_model(self.model).state_dict().items()}
        o = dict(world=num_distrib(), epochs=self.images.epochs, held_out=self.images.held_out, masks=self.masks, weights=w)
        with open(os.path.join(os.environ['SPY'], f'{rank_distrib()}.json'), 'w') as f: json.dump(o, f)

defaults.callbacks = [*defaults.callbacks, Images, Corruption]
if __name__ == '__main__': sys.exit(gmml_pretrain())
'''
ARGS = ('--size 8 --patch-size 2 --in-chans 1 --arch vit_tiny_patch16_224 --embed-dim 24 --depth 2 --num-heads 2 --epochs 2 --bs 8 '
        '--valid-pct .2 --lr .01 --seed 3').split()
ENV = {**os.environ, 'ACCELERATE_USE_CPU': 'true', 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore', 'TERM': 'dumb',
       'PATH': os.pathsep.join([str(Path(sys.executable).parent), os.environ.get('PATH', '')])}


def launch(*cmd, **env):
    r = subprocess.run([str(o) for o in cmd], capture_output=True, text=True, stdin=subprocess.DEVNULL, env={**ENV, **env}, timeout=400)
    assert r.returncode == 0, r.stdout[-2000:] + r.stderr[-4000:]
    return r.stdout


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "60 images of 8 pixels; the first pixel is the number of the image"
    d, rng = tmp_path_factory.mktemp('photos'), np.random.default_rng(0)
    for i in range(60):
        x = rng.integers(0, 256, (8, 8)).astype(np.uint8)
        x[0, 0] = i
        Image.fromarray(x).save(d/f'{i:02}.png')
    return d


@pytest.fixture(scope='module')
def accelerated(photos, tmp_path_factory):
    "The run under `accelerate launch`, watched"
    d = tmp_path_factory.mktemp('run')
    (d/'spy.py').write_text(SPY)
    said = launch('accelerate', 'launch', '--multi_gpu', '--num_processes', 2, '--main_process_port', 0, d/'spy.py', photos, '--out', d/'enc',
                  *ARGS, SPY=str(d))
    return d, said, [json.loads((d/f'{k}.json').read_text()) for k in (0, 1)]


def test_two_processes_see_disjoint_halves(accelerated):
    _, _, (a, b) = accelerated
    assert a['world'] == b['world'] == 2
    for x, y in zip(a['epochs'], b['epochs']):
        assert len(x) == len(y) == 24 and not set(x) & set(y) and len(set(x) | set(y)) == 48
    assert a['epochs'][0] != a['epochs'][1]
    for x, y in zip(a['held_out'], b['held_out']): assert not set(x) & set(y) and len(set(x) | set(y)) == 12
    assert set(a['epochs'][0]) | set(b['epochs'][0]) | set(a['held_out'][0]) | set(b['held_out'][0]) == set(range(60))


def test_corruption_differs_and_weights_agree(accelerated):
    _, _, (a, b) = accelerated
    assert len(a['masks']) == len(b['masks']) == 6 and all(x != y for x, y in zip(a['masks'], b['masks']))
    assert a['weights'] == b['weights']


def test_written_once(accelerated):
    d, said, (a, _) = accelerated
    names = sorted(p.relative_to(d/'enc').as_posix() for p in (d/'enc').rglob('*') if p.is_file())
    ck = 'checkpoint/epoch_00002/'
    assert names == sorted(['config.json', 'model.safetensors', 'settings.json', 'history.csv', 'reconstructions.png', 'checkpoint/settings.json',
        *(ck + o for o in ('config.json', 'model.safetensors', 'state.pt', 'rng_0.pt', 'rng_1.pt'))])
    assert said.count('settings: data=') == said.count('encoder: timm.create_model') == 1
    w = load_file(d/'enc/model.safetensors')
    assert all(abs(w[k].astype(float).sum() - a['weights'][f'encoder.vit.{k}']) < 1e-6 for k in w)
    assert json.loads((d/'enc/settings.json').read_text())['images'] == 48


def test_torchrun_and_the_console_script_itself(accelerated, photos, tmp_path):
    "Another launcher, and the installed command instead of a script: the same weights"
    launch('torchrun', '--standalone', '--nproc-per-node', 2, '--no-python', 'gmml_pretrain', photos, '--out', tmp_path/'enc', *ARGS)
    a, b = load_file(accelerated[0]/'enc/model.safetensors'), load_file(tmp_path/'enc/model.safetensors')
    assert a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
