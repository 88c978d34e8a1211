"gmml_pretrain on two processes: disjoint halves, corruption of their own, equal weights, one set of files"
import json, os, signal, socket, subprocess, sys, time
from pathlib import Path
import numpy as np, pytest, timm, torch
from PIL import Image
from fastai.callback.core import Callback, CancelBatchException
from fastai.metrics import F1Score, RocAuc, accuracy
from fastai.torch_core import get_model, num_distrib, rank_distrib
from fastcore.basics import defaults
from safetensors.numpy import load_file
from gmml_nb import checkpoint
from gmml_nb.experiment import Experiment
from gmml_nb.cli import gmml_pretrain
from gmml_nb.data import finetune_dls, pretrain_dls
from gmml_nb.evaluate import features
from gmml_nb.progress import TrackFeatures
from gmml_nb.finetune import finetune_learner
from gmml_nb.training import GlobalMean, all_processes
from gmml_nb.pretrain import gmml_learner
from common import ROOT, code, ranks

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

OPTIONS = dict(size='8', patch_size='2', in_chans=1, arch='vit_tiny_patch16_224', embed_dim=24, depth=2, num_heads=2, epochs=2, bs=8, valid_pct=.2, lr=.01, seed=3)
ARGS = [o for k,v in OPTIONS.items() for o in ('--' + k.replace('_', '-'), str(v))]
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
def watched(photos, tmp_path_factory):
    "`gmml_pretrain` in two copies of this process, which have imported everything already"
    d = tmp_path_factory.mktemp('run')
    def run():
        os.environ['SPY'],defaults.callbacks = str(d),[*defaults.callbacks, Images, Corruption]
        gmml_pretrain(photos, out=d/'enc', **OPTIONS)
    assert [code(p) for p in ranks(run)] == [0, 0]
    return d, [json.loads((d/f'{k}.json').read_text()) for k in (0, 1)]


def test_two_processes_see_disjoint_halves(watched):
    _, (a, b) = watched
    assert a['world'] == b['world'] == 2
    for x, y in zip(a['epochs'], b['epochs']):
        assert len(x) == len(y) == 24 and not set(x) & set(y) and len(set(x) | set(y)) == 48
    assert a['epochs'][0] != a['epochs'][1]
    for x, y in zip(a['held_out'], b['held_out']): assert not set(x) & set(y) and len(set(x) | set(y)) == 12   # each predicts a half
    assert set(a['epochs'][0]) | set(b['epochs'][0]) | set(a['held_out'][0]) | set(b['held_out'][0]) == set(range(60))


def test_corruption_differs_and_weights_agree(watched):
    _, (a, b) = watched
    assert len(a['masks']) == len(b['masks']) == 6 and all(x != y for x, y in zip(a['masks'], b['masks']))
    assert a['weights'] == b['weights']


def test_written_once(watched):
    d, (a, _) = watched
    names = sorted(p.relative_to(d/'enc').as_posix() for p in (d/'enc').rglob('*') if p.is_file() and p.name != 'settings.json')
    assert names == sorted(['config.json', 'decoder.safetensors', 'model.safetensors', 'history.csv', 'reconstructions.png',
        *(f'checkpoint/finished/{o}' for o in ('checksums.json', 'config.json', 'model.safetensors', 'state.pt', 'rng.pt'))])
    vit = timm.create_model(f'local-dir:{d/"enc"}', pretrained=True).state_dict()
    ours = {k.removeprefix('encoder.vit.'): v for k,v in a['weights'].items() if k.startswith('encoder.vit.')}
    assert sum(abs(v.double().sum().item() - ours[k]) < 1e-6 for k,v in vit.items() if k in ours) >= len(ours) - 2   # a norm may have another name
    assert json.loads((d/'enc/settings.json').read_text())['images'] == 48


def test_torchrun_and_the_console_script_itself(watched, photos, tmp_path):
    "The installed command under a launcher: the same weights, and one process speaks"
    said = launch('torchrun', '--standalone', '--nproc-per-node', 2, '--no-python', 'gmml_pretrain', photos, '--out', tmp_path/'enc', *ARGS)
    assert said.count('settings: data=') == said.count('encoder: timm.create_model') == 1
    a, b = load_file(watched[0]/'enc/model.safetensors'), load_file(tmp_path/'enc/model.safetensors')
    assert a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


# Under a scheduler -------------------------------------------------------------------------------------------------

SLURM = dict(   # what the scripts of the page call, as SLURM does it: srun takes SIGTERM for an order to kill, scancel sends it to the tasks, one that fails ends the others
    srun="""#!/bin/bash
while [ "${1#-}" != "$1" ]; do shift; done
trap 'echo killed >> said; kill -KILL $(cat tasks)' TERM
for i in $(seq $SLURM_JOB_NUM_NODES); do "$@" & echo $! >> tasks; done
for i in $(seq $SLURM_JOB_NUM_NODES); do wait -n; s=$?; [ $s = 0 ] || break; done
[ $s = 0 ] || kill -KILL $(cat tasks) 2> /dev/null
rm tasks; exit $s
""",
    scancel="""#!/bin/bash
echo "scancel $*" >> said; kill -TERM $(cat tasks)
""",
    scontrol="""#!/bin/bash
if [ "$1" = show ]; then echo 127.0.0.1; else echo "scontrol $*" >> said; fi
""")

@pytest.fixture
def slurm(tmp_path):
    "Runs a script of the page about clusters as a job; what it has asked SLURM for"
    for k,v in SLURM.items():
        (tmp_path/'bin').mkdir(exist_ok=True)
        (tmp_path/'bin'/k).write_text(v), (tmp_path/'bin'/k).chmod(0o755)
    cells = {c['id']: c['source'] for c in json.loads((ROOT/'nbs/tutorials/cluster.ipynb').read_text())['cells']}
    with socket.socket() as o:
        o.bind(('127.0.0.1', 0))
        port = o.getsockname()[1]
    env = dict(ENV, PATH=f'{tmp_path}/bin:{ENV["PATH"]}', SLURM_JOB_ID=str(port), SLURM_JOB_NODELIST='n[1-2]', SLURM_JOB_NUM_NODES='2', SLURM_GPUS_ON_NODE='1', SLURM_CPUS_PER_TASK='1',
               SLURM_ARRAY_JOB_ID='12', SLURM_ARRAY_TASK_ID='3', SLURM_ARRAY_TASK_COUNT='8')
    def job(name, *args, ready=None, send=None):
        first,*rest = cells[f'{name}-sbatch']
        assert first == f'%%writefile {name}.sbatch\n'
        (tmp_path/'job').write_text(''.join(rest))
        p = subprocess.Popen(['bash', 'job', *map(str, args)], cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, stdout=open(tmp_path/'log', 'a'), stderr=subprocess.STDOUT)
        end = time.time() + 200
        while ready and not ready() and p.poll() is None and time.time() < end: time.sleep(.01)
        if send: p.send_signal(send)
        if send == signal.SIGTERM and name == 'train':   # SLURM tells the steps, too
            for o in (tmp_path/'tasks').read_text().split(): os.kill(int(o), send)
        status = p.wait(200)
        said = (tmp_path/'said').read_text().replace(str(port), 'JOB').splitlines() if (tmp_path/'said').exists() else []
        (tmp_path/'said').unlink(missing_ok=True)
        return status, said
    return job


def test_a_job_is_requeued_and_goes_on(slurm, photos, tmp_path):
    "The time of a job on two nodes is nearly up: saved, requeued, and the second part comes to the weights of a run that was never stopped"
    def whole(): gmml_pretrain(photos, out=tmp_path/'whole', **dict(OPTIONS, epochs=40))
    assert [code(p) for p in ranks(whole)] == [0, 0]
    cmd = 'gmml_pretrain', photos, '--out', tmp_path/'enc', *ARGS, '--epochs', 40
    points = lambda: sorted((tmp_path/'enc/checkpoint').glob('epoch_*'))
    status,said = slurm('train', *cmd, ready=points, send=signal.SIGUSR1)
    assert status and said == ['scancel --signal=TERM JOB', 'scontrol requeue JOB'], (tmp_path/'log').read_text()[-3000:]
    assert points()[-1].name > 'epoch_00000_batch_000003' and not (tmp_path/'enc/model.safetensors').exists()
    assert slurm('train', *cmd) == (0, []) and 'going on from' in (tmp_path/'log').read_text()
    a, b = load_file(tmp_path/'whole/model.safetensors'), load_file(tmp_path/'enc/model.safetensors')
    assert a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


class Twice(Callback):
    "SIGTERM from two sides, in one process"
    looks_on = True
    def before_step(self):
        if self.train_iter == 1 and rank_distrib(): signal.raise_signal(signal.SIGTERM), signal.raise_signal(signal.SIGTERM)

def test_all_leave_when_all_is_saved(photos, tmp_path):
    "However slow the disk: a process that left before would have its scheduler kill the one that writes"
    def run():
        plain,defaults.callbacks = checkpoint.write_whole,[*defaults.callbacks, Twice]
        checkpoint.write_whole = lambda *a, **kw: (time.sleep(2), plain(*a, **kw))
        try: gmml_pretrain(photos, out=tmp_path/'enc', **OPTIONS)
        except SystemExit as e: os._exit(e.code if (tmp_path/'enc/checkpoint/epoch_00000_batch_000002').is_dir() else 1)
    assert [code(p) for p in ranks(run)] == [143, 143]


COMMAND = """#!/bin/bash
read stopped n finished < numbers
trap 'sleep .3; exit $stopped' TERM
echo "${0##*/} $*" >> said
for i in $(seq $n); do sleep .1; done
exit $finished
"""

@pytest.mark.parametrize('name', ['train', 'sweep'])
@pytest.mark.parametrize('send, numbers, status, again', [
    (None,           (1, 1, 0),    0, False),     # finished
    (None,           (1, 1, 3),    3, False),     # failed
    (signal.SIGUSR1, (143, 99, 0), 143, True),    # stopped before the time was up
    (signal.SIGUSR1, (0, 99, 0),   0, False),     # finished when it was asked to stop
    (signal.SIGTERM, (143, 99, 0), 143, False)])  # cancelled, or preempted: SLURM knows what is next
def test_what_a_job_asks_for(name, send, numbers, status, again, slurm, tmp_path):
    (tmp_path/'numbers').write_text(' '.join(map(str, numbers)) + '\n')
    for o in ('torchrun', 'gmml_sweep'):
        (tmp_path/'bin'/o).write_text(COMMAND)
        (tmp_path/'bin'/o).chmod(0o755)
    ready = lambda: (tmp_path/'said').exists() and (tmp_path/'said').read_text().count('\n') == dict(train=2, sweep=1)[name]
    got,said = slurm(name, 'gmml_pretrain', 'photos/', ready=ready, send=send)
    runs,asked = ([o for o in said if o.startswith(k) == first] for k,first in ((('torchrun', 'gmml_sweep'), True), (('torchrun', 'gmml_sweep'), False)))
    assert got == status and [o for o in asked if 'requeue' in o] == ['scontrol requeue ' + dict(train='JOB', sweep='12_3')[name]]*again, said
    if name == 'sweep': assert runs == ['gmml_sweep gmml_pretrain photos/ --share 3/8']
    else: assert len(runs) == 2 and all(o.startswith('torchrun --nnodes=2 --nproc-per-node=1 ') and o.endswith(' --rdzv-id=JOB --no-python gmml_pretrain photos/') for o in runs)
    assert 'killed' not in said


# One measurement ---------------------------------------------------------------------------------------------------

def measured(folder):
    "What a run measures, on the way and afterwards: pretraining with 11 held-out images, fine-tuning with 13, and an experiment. Rates of 0: the weights are the same on any number"
    tiny,res = dict(embed_dim=16, depth=2, num_heads=2),{}
    x = np.random.default_rng(0).integers(0, 256, (55, 8, 8, 3)).astype(np.uint8)*np.linspace(.2, 1, 55).reshape(-1, 1, 1, 1)
    x,y = x.astype(np.uint8),np.arange(55) % 3
    def outside(pred, clean, mask): return ((pred - clean).abs()*~mask).mean((1, 2, 3)).mean()
    labelled = finetune_dls((x, y), size=8, bs=4, recipe=None, valid_pct=13/55, device='cpu')
    learn = gmml_learner(pretrain_dls(x, size=8, bs=4, valid_pct=.2, device='cpu'), 'vit_tiny_patch16_224', patch_size=2, blocks=(1, 2), model_args=tiny,
                         lr=1e-12, lr_end=0., metrics=outside, cbs=TrackFeatures(labelled, k=5))
    f = finetune_learner(labelled, None, arch='vit_tiny_patch16_224', model_args=dict(tiny, patch_size=2), lr=1e-12, lr_end=0., lr_start=0.,
                         metrics=[accuracy, F1Score(average='macro'), RocAuc()])
    with learn.no_bar(), learn.no_logging(), f.no_bar(), f.no_logging():
        with all_processes(learn):
            learn.fit_gmml(1, estimate=False)
            res['pretraining'] = list(learn.recorder.values[-1][1:])
        res['validate'] = list(learn.validate())
        with all_processes(f):
            f.fit_finetune(1)
            res['fine-tuning'],res['inside'] = list(f.recorder.values[-1][1:]),f.get_preds()[0]
        res['fine-tuned'],res['preds'],res['train'] = list(f.validate()),f.get_preds(),f.get_preds(ds_idx=0)[0]
        res['features'] = features(f, labelled.valid)
    e = Experiment(method='random', data='digits', size=8, patch_size=2, labels=10, images=20, finetune_epochs=1, finetune_bs=10, augment='crop', model_args=tiny,
                   finetune=dict(lr=1e-12, lr_end=0., lr_start=0.))
    res['experiment'] = {k: v for k,v in e.run(folder).items() if k in ('value', 'images_tested')}
    return res

def flat(o): return [v for p in (o.values() if isinstance(o, dict) else o) for v in flat(p)] if isinstance(o, (dict, list, tuple)) else torch.as_tensor(o).double().flatten().tolist()

def test_measured_numbers_are_those_of_one_process(tmp_path):
    "11, 13 and 42 images do not divide by two or three; what is said of them does not change"
    one = measured(tmp_path/'one')
    for n in (2, 3):
        def run(): torch.save(measured(tmp_path/f'{n}_{os.environ["RANK"]}'), tmp_path/f'{n}_{os.environ["RANK"]}.pt')
        assert [code(p) for p in ranks(run, n)] == [0]*n
        for r in range(n):
            got = torch.load(tmp_path/f'{n}_{r}.pt', weights_only=False)
            for k in one: assert np.allclose(flat(got[k]), flat(one[k]), atol=1e-6, rtol=1e-6), (n, r, k, got[k], one[k])

# One mean --------------------------------------------------------------------------------------------------------

N = 64

class Fixed:
    "An alien concept with a mask and a filling of its own for each image, known by its first pixel"
    def __init__(self, stats):
        g = torch.Generator().manual_seed(0)
        self.masks = torch.rand(N, 1, 6, 6, generator=g) < torch.rand(N, 1, 1, 1, generator=g)**2     # from hardly anything to everything
        self.masks[:, :, 0, 0], self.masks = True, self.masks.repeat_interleave(2, 2).repeat_interleave(2, 3)
        self.fill,(self.m, self.s) = torch.randn(N, 1, 12, 12, generator=g),stats
    def __call__(self, x, patch_size, generator=None):
        i = ((x[:, 0, -1, -1]*self.s[0] + self.m[0])*255).round().long()
        return torch.where(self.masks[i], self.fill[i], x), self.masks[i]

def fitted(bs, **kw):
    "Weights after three epochs"
    x = np.random.default_rng(0).integers(0, 256, (N, 12, 12)).astype(np.uint8)
    x[:, -1, -1] = np.arange(N)
    learn = gmml_learner(pretrain_dls(x, size=12, bs=bs, valid_pct=0, device='cpu'), 'vit_tiny_patch16_224', patch_size=2, blocks=(1, 2),
        model_args=dict(embed_dim=16, depth=2, num_heads=2), drop_path=0., crop=(1., 1.), flip=0., jitter_p=0., lr=1e-2, **kw)
    learn.gmml.alien = Fixed(learn.gmml.stats)
    with learn.no_bar(), learn.no_logging(), all_processes(learn): learn.fit_gmml(3, estimate=False)
    return {k: v.detach().clone() for k,v in get_model(learn.model).state_dict().items()}

def apart(a, b): return max((a[k] - b[k]).abs().max().item() for k in a)

@pytest.fixture(scope='module')
def one(): return fitted(16)

def test_accumulated_batches_are_one_large_batch(one):
    assert apart(fitted(4, accumulate=4), one) < 2e-5

def test_two_processes_are_one_with_the_doubled_batch(one, tmp_path):
    def run(): torch.save(fitted(4, accumulate=2), tmp_path/os.environ['RANK'])
    assert [code(p) for p in ranks(run)] == [0, 0]
    a,b = (torch.load(tmp_path/str(i)) for i in (0, 1))
    assert apart(a, b) == 0 and apart(a, one) < 2e-5

def test_a_mean_of_means_is_something_else(one, monkeypatch):
    monkeypatch.setattr(GlobalMean, 'after_loss', lambda self: setattr(self, 'whole', 1))
    monkeypatch.setattr(GlobalMean, 'before_step', mean_of_means)
    assert apart(fitted(4, accumulate=4), one) > 1e-3

def mean_of_means(self):
    self.batches += 1
    self.learn.step_done = self.batches == self.accumulate
    if not self.step_done: raise CancelBatchException
    for p in self.model.parameters(): p.grad.div_(self.accumulate)
    self.batches = 0
