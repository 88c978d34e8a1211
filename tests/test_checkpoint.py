"Nothing lost: runs killed at random moments end with the same weights; signals, full disks, lost files and NaN are survived or said"
import hashlib, json, os, random, shutil, signal, subprocess, sys, time
from functools import partialmethod
from pathlib import Path
import numpy as np, pytest, timm, torch
from PIL import Image
from torch import nn
from fastai.callback.core import Callback
from gmml_nb.checkpoint import Checkpoint
from gmml_nb.data import finetune_dls, pretrain_dls
from gmml_nb.finetune import finetune_learner
from gmml_nb.training import all_processes
from gmml_nb.pretrain import gmml_learner
from callbacks import StopAt
from common import child, code, dies_of_a_worker, ranks

KILLS = int(os.environ.get('GMML_KILLS', 8))    # of pretraining; half of it of two processes, and of fine-tuning
TINY = dict(embed_dim=16, depth=2, num_heads=2)
EPOCHS = 4


def images(n=40): return np.random.RandomState(0).randint(0, 256, (n, 12, 12, 3), dtype=np.uint8)

def pretraining(source=None, valid_pct=.2, cbs=None, **kw):
    dls = pretrain_dls(images() if source is None else source, size=12, bs=4, valid_pct=valid_pct, device='cpu', **kw)
    return gmml_learner(dls, 'vit_tiny_patch16_224', patch_size=2, model_args=TINY, blocks=(1, 2), cbs=cbs)

def finetuning(cbs=None):
    dls = finetune_dls((images(), np.arange(40) % 4), size=12, bs=4, recipe='deit', device='cpu')
    return finetune_learner(dls, None, arch='vit_tiny_patch16_224', model_args=dict(TINY, patch_size=2), cbs=cbs)

def keeping(cbs=None):
    dls = finetune_dls((images(), np.arange(40) % 4), size=12, bs=4, recipe=None, device='cpu')
    unlabelled = pretrain_dls(images(30), size=12, bs=4, valid_pct=0, device='cpu')
    return finetune_learner(dls, None, arch='vit_tiny_patch16_224', model_args=dict(TINY, patch_size=2), cbs=cbs, unlabelled=unlabelled)

def train(learn, folder=None, n=EPOCHS, steps=1, **kw):
    "Train, and save after every step"
    ck = folder and Checkpoint(folder, steps=steps, **kw)
    with learn.no_bar(), learn.no_logging(), all_processes(learn):
        if hasattr(learn, 'gmml'): learn.fit_gmml(n, checkpoint=ck, estimate=False)
        else: learn.fit_finetune(n, checkpoint=ck)
    return learn

def digest(learn):
    "Of weights, and of what the recorder and the scheduler have noted"
    h = hashlib.sha256()
    for k,v in learn.model.state_dict().items(): h.update(k.removeprefix('module.').encode() + v.numpy().tobytes())
    rec = learn.recorder
    h.update(json.dumps([[list(map(float, v)) for v in rec.values], [float(o) for o in rec.losses], rec.hps]).encode())
    return h.hexdigest()

# Killed ------------------------------------------------------------------------------------------------------------

def kill(pids, folder, i, n):
    "Kill processes that train into `folder`: the first of `n` as they begin, the others at a random moment of the `i`-th part of the run"
    chance,give_up = random.Random(i),time.time() + 60
    at = EPOCHS*(i - 1 + chance.random())/(n - 1)
    def epochs(): return max((int(e) + int(b)/8 for _,e,_,b in (o.name.split('_') for o in folder.glob('epoch_*'))), default=0)
    while epochs() < at and not (folder/'finished').exists() and time.time() < give_up: time.sleep(.002)
    time.sleep(chance.uniform(0, .03))   # somewhere in a step, or while it is saved
    for p in pids: os.kill(p, signal.SIGKILL)

def kill_and_resume(make, tmp_path, n):
    "`n` runs, each killed at a random moment and started again; how many were killed in time, and the digests at the end"
    whole,out,killed = digest(train(make(), tmp_path/'whole')),tmp_path/'digest.txt',0
    def run(folder): return lambda: out.write_text(digest(train(make(), folder)))
    for i in range(n):
        folder = tmp_path/f'{i}'
        kill([pid := child(run(folder))], folder, i, n)
        if code(pid):
            killed += 1
            assert code(child(run(folder))) == 0
        assert out.read_text() == whole
        shutil.rmtree(folder)
    return killed

def test_pretraining_killed_at_random(tmp_path): assert kill_and_resume(pretraining, tmp_path, KILLS) > KILLS/2

def test_finetuning_killed_at_random(tmp_path): assert kill_and_resume(finetuning, tmp_path, KILLS//2) > KILLS/4

def test_with_the_loss_kept_killed_at_random(tmp_path): assert kill_and_resume(keeping, tmp_path, KILLS//2) > KILLS/4


def test_two_processes_killed_at_random(tmp_path):
    def run(folder): return lambda: (tmp_path/f'{folder}_{os.environ["RANK"]}').write_text(digest(train(pretraining(), tmp_path/str(folder))))
    assert [code(p) for p in ranks(run('whole'))] == [0, 0]
    killed,n = 0,KILLS//2
    for i in range(n):
        kill(pids := ranks(run(i)), tmp_path/str(i), i, n)
        if any([code(p) for p in pids]):
            killed += 1
            assert [code(p) for p in ranks(run(i))] == [0, 0]
        assert [(tmp_path/f'{i}_{k}').read_text() for k in (0, 1)] == [(tmp_path/f'whole_{k}').read_text() for k in (0, 1)]
    assert killed > KILLS/4
    with pytest.raises(ValueError, match='processes was 2 and is 1'): train(pretraining(), tmp_path/'whole')

LAUNCHED = '''
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from test_checkpoint import *
class Die(Callback):
    "One of the two processes is killed in its ninth step"
    order = 99
    def after_batch(self):
        if self.training and self.train_iter == 9 and os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGKILL)
torch.set_num_threads(1)
train(pretraining(cbs=Die()), sys.argv[2])
'''

def test_one_of_two_processes_killed(tmp_path):
    "An error within a minute and not a hang; two processes go on"
    (tmp_path/'go.py').write_text(LAUNCHED)
    env = {**os.environ, 'ACCELERATE_USE_CPU': 'true', 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore',
           'PATH': os.pathsep.join([str(Path(sys.executable).parent), os.environ.get('PATH', '')])}
    cmd = ['accelerate', 'launch', '--multi_gpu', '--num_processes', '2', '--main_process_port', '0', tmp_path/'go.py', os.path.dirname(__file__), tmp_path/'ck']
    start = time.time()
    r = subprocess.run([str(o) for o in cmd], env=env, capture_output=True, text=True, timeout=120)
    assert r.returncode != 0 and time.time() - start < 60, r.stderr[-2000:]
    assert 'SIGKILL' in r.stderr or '-9' in r.stderr
    class Steps(Callback):
        def before_fit(self): self.n = 0
        def before_step(self): self.n += 1
    def go_on():
        learn = train(pretraining(cbs=Steps()), tmp_path/'ck')
        assert len(learn.recorder.losses) == EPOCHS*len(learn.dls.train) and EPOCHS*len(learn.dls.train) - learn.steps.n in (8, 9)   # saved before, or just
    assert [code(p) for p in ranks(go_on)] == [0, 0]


def test_after_other_trainings(tmp_path):
    "A learner that has trained before has other epochs to come, which the checkpoint knows"
    def twice(cbs=None, folder=None):
        learn = train(pretraining(), n=1)
        if cbs: learn.add_cbs(cbs)
        return train(learn, folder, n=3)
    with pytest.raises(KeyboardInterrupt): twice(StopAt(11), tmp_path/'ck')
    again = twice(folder=tmp_path/'ck')
    with pytest.raises(ValueError, match='start_weights was'): train(pretraining(), tmp_path/'ck', n=3)   # one that has not trained before is another run
    a,b = ({k: v for k,v in o.model.state_dict().items()} for o in (again, twice()))
    assert all(torch.equal(a[k], b[k]) for k in a)


# Faults ------------------------------------------------------------------------------------------------------------

class Signal(Callback):
    "A signal between the gradients and the optimiser's step"
    def __init__(self, signum, step=7): self.signum,self.step = signum,step
    def before_step(self):
        if self.train_iter == self.step: signal.raise_signal(self.signum)

@pytest.mark.parametrize('signum,error', [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_signals_wait_for_the_step_and_save(tmp_path, capsys, signum, error):
    before = signal.getsignal(signum)
    with pytest.raises(error): train(pretraining(cbs=Signal(signum)), tmp_path/'ck', steps=None)
    assert signal.getsignal(signum) is before
    assert f'The same call goes on from {tmp_path/"ck/epoch_00000_batch_000008"}' in capsys.readouterr().out
    assert digest(train(pretraining(), tmp_path/'ck', steps=None)) == digest(train(pretraining()))

def test_a_second_ctrl_c_does_not_wait(tmp_path):
    class Twice(Signal):
        def before_step(self): super().before_step(), super().before_step()
    with pytest.raises(KeyboardInterrupt): train(pretraining(cbs=Twice(signal.SIGINT, 3)), tmp_path/'ck')
    assert sorted(o.name for o in (tmp_path/'ck').iterdir())[-1] == 'epoch_00000_batch_000003'    # the fourth step was not finished

class Poison(Callback):
    "Weights that are no numbers, from step 9 on"
    def after_step(self):
        if self.train_iter == 9: next(self.model.parameters()).data.fill_(float('nan'))

def test_nan_names_step_rate_and_checkpoint(tmp_path, capsys):
    with pytest.raises(FloatingPointError, match='(?s)nan at step 1[01] .*learning rate .*epoch_00001_batch_000001'):
        train(pretraining(cbs=Poison()), tmp_path/'ck')
    train(gentler := pretraining_with(lr=1e-4), tmp_path/'ck')
    assert 'from here on, lr was 0.0005 and is 0.0001' in capsys.readouterr().out
    assert all(v.isfinite().all() for v in gentler.model.state_dict().values())

def test_compiled_runs_go_on_and_export(tmp_path, monkeypatch):
    "The same names of weights, in checkpoints and in the encoder that timm loads"
    monkeypatch.setattr(nn.Module, 'compile', partialmethod(nn.Module.compile, backend='aot_eager'))   # traced as any; C++ for it would take a minute
    def compiled(**kw): return pretraining_with(compile=True, **kw)
    whole = train(compiled(), n=2)
    with pytest.raises(KeyboardInterrupt): train(compiled(cbs=Signal(signal.SIGINT)), tmp_path/'ck', n=2)
    again = train(compiled(), tmp_path/'ck', n=2)
    assert again.model._compiled_call_impl and digest(again) == digest(whole)
    again.export_encoder(tmp_path/'enc')
    vit = timm.create_model(f'local-dir:{tmp_path/"enc"}', pretrained=True).state_dict()
    ours = again.model.encoder.vit.state_dict()
    assert vit.keys() == ours.keys() and all(torch.equal(vit[k], v) for k,v in ours.items())

def pretraining_with(**kw):
    dls = pretrain_dls(images(), size=12, bs=4, valid_pct=.2, device='cpu')
    return gmml_learner(dls, 'vit_tiny_patch16_224', patch_size=2, model_args=TINY, blocks=(1, 2), **kw)

@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() != 0, reason='mounting a file system needs root')
def test_full_disk(tmp_path):
    "Training goes on, says so, and the checkpoint before stays whole"
    small = tmp_path/'small'
    small.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=600k', 'tmpfs', small], capture_output=True).returncode: pytest.skip('no mount here')
    try:
        class Fill(Callback):
            order = 99
            def after_batch(self):
                if self.training and self.train_iter == 5: (small/'others').write_bytes(bytes(shutil.disk_usage(small).free))
        with pytest.warns(UserWarning, match='cannot save .*batch_000006: .*Training goes on; the last checkpoint is .*batch_000005'):
            learn = train(pretraining(cbs=Fill()), small/'ck')
        assert digest(learn) == digest(train(pretraining()))
        assert sorted(o.name for o in (small/'ck').iterdir()) == ['epoch_00000_batch_000004', 'epoch_00000_batch_000005']
        (small/'others').unlink()
        assert digest(train(pretraining(), small/'ck')) == digest(learn)
    finally: subprocess.run(['umount', small], check=True)

def test_folder_that_cannot_be_written_shows_in_the_first_epoch(tmp_path):
    (tmp_path/'ck').write_text('a file')
    with pytest.warns(UserWarning, match='cannot save .*there is no checkpoint yet'): train(pretraining(), tmp_path/'ck', n=1, steps=None)


@pytest.fixture
def photos(tmp_path):
    for i,o in enumerate(images()):
        (tmp_path/'photos').mkdir(exist_ok=True)
        Image.fromarray(o).save(tmp_path/f'photos/{i:02}.png')
    return tmp_path/'photos'

class Then(Callback):
    "Something happens after the ninth step"
    order = 99
    def __init__(self, f): self.f = f
    def after_batch(self):
        if self.training and self.train_iter == 9: self.f()

def cut(photos):
    for f in photos.iterdir(): f.write_bytes(f.read_bytes()[:100])

@pytest.mark.parametrize('what', [lambda o: o.rename(o.with_name('elsewhere')), cut], ids=['folder gone', 'files cut off'])
def test_source_lost_in_the_middle(photos, tmp_path, capsys, what):
    "The file is named, the run is saved, and goes on when the source is back"
    shutil.copytree(photos, tmp_path/'backup')
    with pytest.raises(ValueError, match=r'photos.*\.png'):
        train(pretraining(photos, cache=None, cbs=Then(lambda: what(photos))), tmp_path/'ck', steps=None)
    assert 'epoch_00001_batch_000001' in capsys.readouterr().out      # saved after the ninth step: the first of the second epoch
    shutil.rmtree(photos, ignore_errors=True)
    shutil.copytree(tmp_path/'backup', photos)
    assert digest(train(pretraining(photos, cache=None), tmp_path/'ck')) == digest(train(pretraining(photos, cache=None)))

def test_worker_killed(photos, tmp_path):
    "A reading process that is killed ends the run with an error; the same call goes on"
    def kill():
        me = str(os.getpid())
        kids = [p for p in os.listdir('/proc') if p.isdigit() and Path(f'/proc/{p}/stat').read_text().rsplit(')', 1)[1].split()[1] == me]
        os.kill(int(kids[0]), signal.SIGKILL)
    kw = dict(cache=None, num_workers=2, valid_pct=0)
    assert dies_of_a_worker(lambda: train(pretraining(photos, cbs=Then(kill), **kw), tmp_path/'ck'))
    assert digest(train(pretraining(photos, **kw), tmp_path/'ck')) == digest(train(pretraining(photos, **kw)))

# Another run -------------------------------------------------------------------------------------------------------

def test_a_finished_run_answers_for_no_other(tmp_path, capsys):
    "Fine-tuned from an encoder at a path: any other encoder there, other images, labels, classes, statistics, loss or fields are refused by name, and nothing is written"
    def encoder(seed):
        dls = pretrain_dls(images(), size=12, bs=4, device='cpu', valid_pct=0)
        gmml_learner(dls, 'vit_tiny_patch16_224', patch_size=2, model_args=TINY, blocks=(1, 2), seed=seed).export_encoder(tmp_path/'enc')
    def learner(x=None, y=None, loss=None, recipe='crop', stats=None, bs=4, valid_pct=.2, **kw):
        y = [f'{i%4}' for i in range(40)] if y is None else y
        dls = finetune_dls((images() if x is None else x, y), size=12, bs=bs, recipe=recipe, stats=stats, valid_pct=valid_pct, device='cpu')
        learn = finetune_learner(dls, tmp_path/'enc', 'deit', **kw)
        if loss: learn.loss_func = loss
        return learn
    encoder(1)
    whole = train(learner(), tmp_path/'ck', n=1)
    assert [o.name for o in (tmp_path/'ck').iterdir()] == ['finished']
    kept = {o: o.read_bytes() for o in (tmp_path/'ck/finished').iterdir()}
    again = learner()
    for o in (again, again):   # also the same cell once more
        assert digest(train(o, tmp_path/'ck', n=1)) == digest(whole)
        assert f'{tmp_path/"ck"}: this run has finished, nothing is trained' in capsys.readouterr().out
    x = images()
    x[7, 3, 3] ^= 1
    for kw,why in ((dict(lr=.05), 'lr was 0.0005 and is 0.05'), (dict(x=x), 'train_images was|held_out_images was'), (dict(y=[f'{i//10}' for i in range(40)]), 'train_images was'),
                   (dict(y=[f'kind {i%4}' for i in range(40)]), 'vocab was'), (dict(loss=torch.nn.CrossEntropyLoss(weight=torch.arange(4.))), 'loss_func was'),
                   (dict(recipe=None), 'augmentation was'), (dict(stats=([.5]*3, [.2]*3)), 'stats was'), (dict(bs=8), 'bs was 4 and is 8'), (dict(seed=7), 'start_weights was')):
        with pytest.raises(ValueError, match=f'another run, which has finished: .*({why}).*or delete') as e: train(learner(**kw), tmp_path/'ck', n=1)
        assert 'Exception occured' not in str(e.value)
    encoder(2)
    with pytest.raises(ValueError, match='start_weights was'): train(learner(), tmp_path/'ck', n=1)
    assert {o: o.read_bytes() for o in (tmp_path/'ck/finished').iterdir()} == kept

def test_rates_may_change_on_the_way_and_it_is_noted(tmp_path):
    "In an unfinished run; the same learner, interrupted, goes on, too"
    learn = pretraining(cbs=Signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt): train(learn, tmp_path/'ck', n=2)
    with pytest.raises(ValueError, match='start_weights was'): train(pretraining_with(seed=7), tmp_path/'ck', n=2)
    shutil.copytree(tmp_path/'ck', tmp_path/'other')
    learn.remove_cb(learn.signal)
    assert digest(train(learn, tmp_path/'ck', n=2)) == digest(train(pretraining(), n=2))
    assert train(pretraining_with(lr=1e-4), tmp_path/'other', n=2).ran['changed'] == [dict(step=8, lr=5e-4)]


def test_a_fitted_head_that_is_rounded_otherwise_is_the_same_run(tmp_path, capsys, monkeypatch):
    "Another machine finds the head's first weights to a few digits less: the run is known by what comes before, and another encoder is still refused"
    from sklearn.linear_model import LogisticRegression
    from gmml_nb import finetune
    class Elsewhere(LogisticRegression):
        def fit(self, *args):
            super().fit(*args)
            self.coef_ = self.coef_*(1 + 1e-5)
            return self
    def learner(**kw):
        dls = finetune_dls((images(), [f'{i%4}' for i in range(40)]), size=12, bs=4, recipe='crop', device='cpu')
        return finetune_learner(dls, None, 'few', arch='vit_tiny_patch16_224', model_args=dict(TINY, patch_size=2), **kw)
    whole = train(learner(), tmp_path/'ck', n=1)
    monkeypatch.setattr(finetune, 'LogisticRegression', Elsewhere)
    other = learner()
    assert digest(train(other, tmp_path/'ck', n=1)) == digest(whole) and 'this run has finished' in capsys.readouterr().out
    with pytest.raises(ValueError, match='start_weights was|seed was'): train(learner(seed=7), tmp_path/'ck', n=1)
