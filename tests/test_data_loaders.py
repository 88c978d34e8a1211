"The loaders inside fastai's Learner: fit, get_preds, predict, show, export; and several processes."
import os, subprocess, sys, textwrap
import matplotlib; matplotlib.use('Agg')
import numpy as np, pytest, torch
from torch import nn
from fastai.callback.core import Callback
from fastai.learner import Learner, load_learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from gmml_nb.data import ImageDL, ImageSet, finetune_dls, pretrain_dls


class Auto(Callback):
    "The simplest label-free training: rebuild the image"
    order = 9.5
    def before_batch(self):
        x = self.xb[0].as_subclass(torch.Tensor).float()/255
        self.learn.xb, self.learn.yb = (x,), (x,)

def auto_learner(dls): return Learner(dls, nn.Conv2d(1, 1, 3, padding=1), loss_func=nn.MSELoss(), cbs=Auto())

def classifier(dls, path='.'):
    h, w = dls.size
    return Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(dls.in_chans*h*w, dls.c)), loss_func=CrossEntropyLossFlat(),
                   metrics=accuracy, path=path)

@pytest.mark.parametrize('valid_pct', [.1, 0])
def test_fit_label_free(valid_pct):
    learn = auto_learner(pretrain_dls('digits', size=8, valid_pct=valid_pct))
    with learn.no_bar(): learn.fit(2, 1e-2)
    assert len(learn.recorder.losses) == 2*len(learn.dls.train)
    assert (learn.recorder.values[-1][1] is None) == (valid_pct == 0)

def test_labels_of_all_images_keep_their_order():
    "`labels=` all of them and no `labels` are the same training set"
    def train(labels): return finetune_dls('digits', size=8, recipe=None, idxs=range(99, -1, -1), labels=labels).train.dataset
    n = len(train(None))
    assert torch.equal(train(None).items, train(n).items) and list(train(None).labels) == list(train(n).labels)

def test_same_seed_same_run():
    def run():
        torch.manual_seed(0)
        learn = classifier(finetune_dls('digits', size=8, recipe='deit', labels=200, bs=32))
        with learn.no_bar(): learn.fit(2, 1e-2)
        return learn.model[1].weight.detach()
    a = run()
    np.random.seed(7)
    assert torch.equal(a, run())

def test_predictions_and_export(tmp_path):
    dls = finetune_dls('digits', size=8, recipe=None)
    learn = classifier(dls, tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit(5, 1e-2)
    with learn.no_bar():
        acc = learn.validate(dl=dls.test)[1]
        preds, targs = learn.get_preds(dl=dls.test)
    assert acc > .85 and abs((preds.argmax(1) == targs).float().mean() - acc) < 1e-6
    assert torch.equal(targs, torch.Tensor(dls.test.dataset.labels))
    learn.show_results()
    dls.show_batch()
    learn.export('m.pkl')
    with pytest.warns(UserWarning): again = load_learner(tmp_path/'m.pkl')
    assert len(again.dls.train.dataset) == 0 and again.dls.vocab == dls.vocab and again.dls.size == (8, 8)
    img = dls.test.dataset.items[0, 0].numpy()
    with again.no_bar(): name, idx, probs = again.predict(img)
    assert name == dls.vocab[int(preds[0].argmax())]
    assert torch.allclose(torch.Tensor(probs), preds[0], atol=1e-4)
    with again.no_bar(): more = again.get_preds(dl=again.dls.test_dl([img]*3))[0]
    assert torch.allclose(more, preds[:1].expand(3, -1), atol=1e-4)

def test_label_free_export(tmp_path):
    learn = auto_learner(pretrain_dls('digits', size=8))
    learn.path = tmp_path
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    learn.export('m.pkl')
    with pytest.warns(UserWarning): assert load_learner(tmp_path/'m.pkl').dls.size == (8, 8)

def test_workers_give_the_same():
    a, b = (finetune_dls('digits', size=8, labels=100, recipe='deit-rand', num_workers=k) for k in (0, 2))
    for _ in range(2):
        for x, y in zip(a.train, b.train): assert torch.equal(x[0], y[0]) and torch.equal(x[1], y[1])


SCRIPT = '''
import json, os, sys
import torch
sys.path.insert(0, os.path.dirname(sys.argv[1]))
from test_data_loaders import *
from fastai.distributed import *
from fastai.torch_core import num_distrib, rank_distrib

class Seen(Callback):
    order = 9.4
    def before_fit(self): self.seen = {True: [], False: []}
    def before_batch(self): self.seen[self.training] += self.xb[0][:, 0, 0, 0].tolist()

n = 51
x = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).repeat(1, 1, 4, 4)
dls = pretrain_dls(x, size=4, bs=4*2//max(num_distrib(), 1), valid_pct=15/51, stats=([.5], [.5]), device='cpu')
torch.manual_seed(0)
learn = auto_learner(dls); learn.add_cb(Seen())
with learn.no_bar(), learn.distrib_ctx(sync_bn=False): learn.fit(1, 1e-2)
model = getattr(learn.model, 'module', learn.model)
whole = None
if num_distrib():
    dl = dls.valid
    it = iter(dl); outs = []
    for b in it: outs += dl.to_detach(b[0][:, 0, 0, 0]).tolist()
    whole = sorted(outs)
json.dump(dict(train=learn.seen.seen[True], valid=learn.seen.seen[False], w=model.weight.flatten().tolist(), whole=whole,
               loss=learn.recorder.values[-1][1], idxs=dls.valid.get_idxs(), items=dls.valid.dataset.items[:, 0, 0, 0].tolist()),
          open(f'{sys.argv[2]}/{rank_distrib()}.json', 'w'))
if torch.distributed.is_initialized(): torch.distributed.destroy_process_group()   # or its threads may abort the exit
'''

def test_two_processes(tmp_path):
    "Two CPU processes see disjoint halves of what one sees, step by step, and end at the same weights"
    import json
    (tmp_path/'run.py').write_text(SCRIPT)
    args = [str(tmp_path/'run.py'), os.path.abspath(__file__)]
    env = {**os.environ, 'ACCELERATE_USE_CPU': 'true', 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'}
    (tmp_path/'one').mkdir(); (tmp_path/'two').mkdir()
    subprocess.run([sys.executable, *args, str(tmp_path/'one')], check=True, env=env, timeout=300)
    subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', *args, str(tmp_path/'two')],
                   check=True, env=env, timeout=300)
    read = lambda p: json.loads(p.read_text())
    one, a, b = read(tmp_path/'one/0.json'), read(tmp_path/'two/0.json'), read(tmp_path/'two/1.json')
    both = [i for k in range(0, len(a['train']), 4) for j in range(k, k+4) for i in (a['train'][j], b['train'][j])]
    assert not set(a['train']) & set(b['train']) and one['train'] == both
    assert np.allclose(one['w'], a['w'], atol=1e-5) and a['w'] == b['w']
    assert len(a['valid']) == len(b['valid']) == 8 and set(a['valid']) | set(b['valid']) == set(one['valid'])
    assert [a['items'][i] for i in a['idxs']] == a['valid'] and [b['items'][i] for i in b['idxs']] == b['valid']
    assert a['whole'] == b['whole'] == sorted(one['valid'])
    assert abs(a['loss'] - one['loss']) < .1*one['loss'] and a['loss'] == b['loss']
