"The loaders inside fastai's Learner: fit, get_preds, predict, show, export; and several processes."
import json, os, time
import matplotlib; matplotlib.use('Agg')
import matplotlib.pyplot as plt
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from timm.data import create_transform
from torch import nn
from fastai.callback.core import Callback
from fastai.interpret import ClassificationInterpretation
from fastai.learner import Learner, load_learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
import fastai.distributed, fastai.vision.learner   # several processes; how top losses are drawn
from common import child, code, ranks
from gmml_nb.data import ImageDL, ImageSet, finetune_dls, pretrain_dls
from gmml_nb.files import image_files
from gmml_nb.images import from_pil, image_sizes
from gmml_nb.pixels import as_float, crop_mode, fit_image


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

@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "Twelve pictures of two classes, none square, and two files that are none"
    root, rng = tmp_path_factory.mktemp('photos'), np.random.default_rng(0)
    for i in range(12):
        (root/'ab'[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((70, 50)).save(root/'ab'[i % 2]/f'{i:02}.png')
    for o in ('a/01.png', 'b/zz.png'): (root/o).write_text('no image')
    return root

KW = dict(size=16, bs=4, device='cpu')
def fine(root, **kw): return finetune_dls(root, **{**KW, 'on_error': 'skip', 'recipe': 'light', **kw})

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('cache', ['auto', None])
def test_rows_have_the_names_of_their_files(photos, cache):
    "Row k of features and of predictions is the k-th of `items`, whatever was skipped"
    pre = pretrain_dls(photos, **KW, on_error='skip', cache=cache)
    dls = fine(photos, cache=cache)
    assert len(pre.train.items) + len(pre.valid.items) == len(dls.train.items) + len(dls.valid.items) == 12
    for dl in (*pre.loaders, *dls.loaders):
        assert all(isinstance(o, str) and Path(o).name not in ('01.png', 'zz.png') or Path(o) == photos/'b/01.png' for o in dl.items) and dl.items == dl.dataset.items
    for dl, like in ((pre.valid, pre), (dls.valid, dls)):
        x = torch.cat([b[0] for b in dl])
        assert torch.equal(x, torch.cat([b[0] for b in like.test_dl(dl.items)]))
    assert [dls.vocab[i] for i in dls.valid.dataset.labels] == [Path(o).parent.name for o in dls.valid.items]
    learn = classifier(dls)
    with learn.no_bar(): p, y = learn.get_preds(ds_idx=0)
    assert torch.equal(y, torch.Tensor(dls.train.dataset.labels))

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('resize', ['crop', 'pad', 'squish'])
@pytest.mark.parametrize('cache', ['auto', None])
def test_held_out_images_are_fitted_once(photos, resize, cache):
    "As timm's transforms do it with the whole file: kept, read anew, or another one"
    dls = fine(photos, resize=resize, crop_pct=.9, cache=cache)
    fit = create_transform((3, 16, 16), crop_pct=.9, interpolation='bicubic', crop_mode=crop_mode(resize), mean=tuple(dls.stats[0].tolist()), std=tuple(dls.stats[1].tolist()))
    want = torch.stack([fit(Image.open(o)) for o in dls.valid.items])
    for dl in (dls.valid, dls.test_dl(dls.valid.items), dls.test_dl([Image.open(o) for o in dls.valid.items])):
        assert (torch.cat([b[0] for b in dl]).as_subclass(torch.Tensor) - want).abs().max() < 1e-5

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('recipe', ['light', None])
def test_loaders_adopt_what_an_encoder_was_trained_with(photos, recipe):
    half = ([.5]*3, [.4]*3)
    for new in (dict(stats=half), dict(resize='pad', crop_pct=.8), dict(stats=half, resize='squish'), dict(stats=half, resize='pad'), dict(crop_pct=.5), {}):
        dls = fine(photos, recipe=recipe)
        kept, was = dls.train.dataset.kept, dls.valid.dataset.kept
        stats = dls.stats
        before, dls = dls, dls.adopt(**new)
        assert dls.given == frozenset() and before.crop_pct == 224/256*(recipe is not None) + (recipe is None)  # the first stay as they were
        assert before.stats is stats and before.resize == 'crop' and before.valid.dataset.kept is was
        want = fine(photos, recipe=recipe, **{'stats': stats, **new})
        for a, b in zip([*dls.train, *dls.valid], [*want.train, *want.valid]): assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
        assert want.given == {'stats'} | set(new) and [dls.resize, dls.crop_pct] == [want.resize, want.crop_pct]
        if recipe: assert dls.train.dataset.kept is kept                  # training images are not decoded again
        if new.keys() <= {'stats'}: assert dls.valid.dataset.kept is was
    with pytest.raises(ValueError, match='divide them by 255'): dls.adopt(([123.]*3, [58.]*3))

class Pictures(torch.utils.data.Dataset):
    def __init__(self, files): self.files = files
    def __len__(self): return len(self.files)
    def __getitem__(self, i): return Image.open(self.files[i])

def test_depth_of_the_files_goes_along(tmp_path):
    "12 bits in 16: measured on the training images, and adopted"
    for i in range(8): Image.fromarray(np.full((16, 16), 500*(i+1), np.uint16)).save(tmp_path/f'{i}.png')
    files = sorted(map(str, tmp_path.iterdir()))
    kw = dict(size=16, bs=2, recipe=None, valid_pct=.25, device='cpu', stats=([.5]*3, [.5]*3))
    dls = finetune_dls((files, ['a', 'b']*4), **kw)
    assert dls.depth and dls.given == {'stats'} and pretrain_dls(files, size=16, bs=2, valid_pct=0, device='cpu').depth == {'16-bit': [0, 4000]}
    for o in ([Image.open(f) for f in files], Pictures(files)):   # in memory, or in a dataset
        assert torch.equal(finetune_dls((o, ['a', 'b']*4), **kw).valid.one_batch()[0], dls.valid.one_batch()[0])
        assert pretrain_dls(o, size=16, bs=2, valid_pct=0, device='cpu', cache=None).depth == {'16-bit': [0, 4000]}
    half = {'16-bit': [0, 65535]}
    want = finetune_dls((files, ['a', 'b']*4), depth=half, **kw)
    assert want.depth == half and want.given == {'stats', 'depth'} and not torch.equal(want.valid.one_batch()[0], dls.valid.one_batch()[0])
    new = dls.adopt(depth=half)
    assert torch.equal(new.valid.one_batch()[0], want.valid.one_batch()[0]) and new.test_dl(files).dataset.depth == half != dls.depth

@pytest.mark.parametrize('c', [1, 2, 3, 4, 6])
def test_doors_of_fastai(c):
    "Whatever the channels: drawn, predicted, explained"
    x, y = np.random.default_rng(0).random((20, c, 16, 16), dtype=np.float32), [*'ab']*10
    dls, pre = finetune_dls((x, y), **KW, recipe='light'), pretrain_dls(x, **KW)
    learn = classifier(dls)
    for o in (dls, pre):
        for kw in (dict(), dict(unique=True), dict(max_n=4, nrows=2), dict(ncols=2)): o.show_batch(**kw)
        o.valid.show_batch()
        b = o.valid.decode(o.valid.one_batch())
        assert b[0].shape == (len(b[0]), c, 16, 16) and 0 <= b[0].min() and b[0].max() <= 1.001
        assert len(o.test_dl(x[0]).dataset) == len(o.test_dl([x[0]]).dataset) == 1 and len(o.test_dl(torch.tensor(x)).one_batch()) == 1
    pre.valid.show_results(pre.valid.one_batch(), torch.randn(2, c, 16, 16))
    with learn.no_bar():
        learn.show_results(max_n=3), learn.show_results(nrows=2)
        assert learn.predict(x[0])[0] in 'ab' and learn.tta()[0].shape == (4, 2) and learn.dls.valid.dataset.augment is None
        ClassificationInterpretation.from_learner(learn).plot_top_losses(3)
        assert learn.validate(dl=dls.test_dl((x, y), with_labels=True))[1] >= 0
    plt.close('all')
    if c not in (1, 3):
        with pytest.raises(ValueError, match=f'images of {c} channels: give an array'): dls.test_dl(['a.png'])

@pytest.mark.filterwarnings('ignore')
def test_labels_of_other_images(photos):
    dls = fine(photos)
    own, name = dls.valid.items[::-1], lambda o: dls.vocab.o2i[Path(o).parent.name]
    df = pd.DataFrame(dict(image=own, label=['b']*len(own)))
    for o, want in ((str(photos/'a'), None), (own, [*map(name, own)]), ([Path(o) for o in own], [*map(name, own)]), (df, [1]*len(own)), ((own, ['a']*len(own)), [0]*len(own))):
        if want: assert dls.test_dl(o, with_labels=True).dataset.labels.tolist() == want
        else: assert set(dls.test_dl(o, with_labels=True).dataset.labels.tolist()) == {0}
    frame = finetune_dls((own, ['x', 'y']*(len(own)//2) + ['x']*(len(own) % 2)), **KW, recipe=None, valid_pct=0)   # not the folders' names
    assert frame.test_dl(own, with_labels=True).dataset.labels.tolist() == frame.train.dataset.labels.tolist()
    with pytest.raises(ValueError, match="no class that the model knows, such as 'z'"): dls.test_dl((own, ['z']*len(own)), with_labels=True)
    with pytest.raises(ValueError, match='no class that the model knows'): frame.test_dl([str(photos/'a/00.png')]*2 if str(photos/'a/00.png') not in own else [str(photos/'nowhere.png')], with_labels=True)
    with pytest.raises(ValueError, match='no such file'): dls.test_dl([photos/'gone.png']).one_batch()

def test_label_free_export(tmp_path):
    learn = auto_learner(pretrain_dls('digits', size=8))
    learn.path = tmp_path
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    learn.export('m.pkl')
    with pytest.warns(UserWarning): assert load_learner(tmp_path/'m.pkl').dls.size == (8, 8)

@pytest.mark.filterwarnings('ignore')
def test_no_picture_is_exported(photos, tmp_path):
    learn = classifier(fine(photos), tmp_path)
    learn.export('m.pkl')
    again = load_learner(tmp_path/'m.pkl')
    assert not len(again.dls.valid.items) and again.dls.valid.dataset.kept is None and (tmp_path/'m.pkl').stat().st_size < 60_000
    with learn.no_bar(), again.no_bar():
        assert torch.equal(learn.predict(photos/'a/00.png')[2], again.predict(photos/'a/00.png')[2])

def test_workers_give_the_same(photos):
    "Of arrays and of files; another seed gives others"
    kw = dict(recipe='deit-rand', on_error='skip', device='cpu')
    for o, size in (('digits', dict(size=8, labels=100)), (photos, dict(size=16, bs=4, cache=None))):
        a, b, other = (finetune_dls(o, **size, **kw, num_workers=k, seed=seed) for k, seed in ((0, 42), (2, 42), (0, 1)))
        for _ in range(2):
            for x, y in zip(a.train, b.train): assert torch.equal(x[0], y[0]) and torch.equal(x[1], y[1])
        assert not torch.equal(a.train.one_batch()[0], other.train.one_batch()[0])
        for x, y in zip(a.valid, b.valid): assert torch.equal(x[0], y[0])

class Who(ImageSet):
    "A batch says which process made it, in which epoch, of which images"
    def batch(self, idxs, epoch=0): return (torch.tensor([[os.getpid(), epoch, *idxs]]),)

def test_workers_live_on():
    "The same processes in every epoch, the batches of one process, also after an epoch that was broken off"
    x = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 1, 4, 4)
    kw = dict(bs=4, shuffle=True, drop_last=True, seed=1)
    alone, who = ImageDL(Who(x, (4, 4), 1), **kw), ImageDL(Who(x, (4, 4), 1), num_workers=2, **kw)
    first, second, a, b = ([o[0].tolist() for o, in dl] for dl in (alone, alone, who, who))
    assert [[o[1:] for o in e] for e in (a, b)] == [[o[1:] for o in e] for e in (first, second)] and [{o[1] for o in e} for e in (a, b)] == [{0}, {1}]
    assert {o[0] for o in a} == {o[0] for o in b} and os.getpid() not in {o[0] for o in a + b}
    next(iter(who))
    assert [o[0, 1].item() for o, in who] == [3, 3] and who.one_batch()[0][0, :2].tolist() == [os.getpid(), 4]

@pytest.mark.filterwarnings('ignore')
def test_stored_images(photos):
    "Held in memory or read anew, they and their sizes are the same; small ones are not made larger; arrays are as they are"
    files = image_files(photos/'a')[-4:]
    kept, fresh = (pretrain_dls(files, size=(32, 48), bs=2, valid_pct=.25, device='cpu', **kw) for kw in ({}, dict(cache=None, num_workers=2)))
    assert fresh.valid.items == kept.valid.items
    for a, b in [*zip(kept.train, fresh.train), *zip(kept.valid, fresh.valid)]: assert torch.equal(a[0], b[0]) and torch.equal(a[0].hw, b[0].hw)
    same = pretrain_dls(files, size=(32, 48), bs=4, store=(40, 30), valid_pct=0, device='cpu')
    assert same.one_batch()[0].shape == (4, 3, 40, 30) and same.size == (32, 48)
    assert pretrain_dls(files, size=1000, valid_pct=0).one_batch()[0].shape[2:] == tuple(image_sizes(files).max(0))
    tall = pretrain_dls(np.zeros((4, 20, 10), np.uint8), size=8, bs=2, stats=([.5], [.5])).one_batch()[0]
    assert tall.shape == (2, 1, 20, 10) and tall.hw is None

@pytest.mark.filterwarnings('ignore')
def test_sources_of_labelled_images(photos):
    files = [o for o in image_files(photos) if Path(o).stat().st_size > 100]
    df = pd.DataFrame(dict(path=files, label=[Path(o).parent.name for o in files]))
    assert finetune_dls(df, size=16, recipe=None).vocab == ['a', 'b']
    four = finetune_dls((torch.rand(40, 4, 8, 8), [*'wxyz']*10), size=16, bs=8, recipe='light', device='cpu')
    assert four.one_batch()[0].shape == (8, 4, 16, 16) and four.in_chans == 4 and four.test is None
    part = finetune_dls('digits', size=8, idxs=range(50), valid_pct=.2, recipe=lambda img: img.rotate(10))
    assert (len(part.train.dataset), len(part.valid.dataset)) == (40, 10)
    assert finetune_dls('digits', size=8, in_chans=3, recipe=None, labels=20, bs=10).one_batch()[0].shape == (10, 3, 8, 8)
    assert len(pretrain_dls('digits', size=8, valid_pct=0).valid) == 0

@pytest.mark.filterwarnings('ignore')
def test_one_other_image_is_as_held_out(photos):
    "`fit_image` of the whole file, normalised, and nothing else; a recipe that crops has the middle 224/256 shown"
    dls = fine(photos, stats=([.5]*3, [.5]*3))
    x, = dls.test_dl(dls.valid.items[0]).one_batch()
    want = as_float(torch.from_numpy(from_pil(fit_image(Image.open(dls.valid.items[0]), (16, 16), crop_pct=224/256)).copy()))
    assert torch.allclose(x[0].as_subclass(torch.Tensor), (want - .5)/.5, atol=1e-5) and torch.equal(x[0], dls.valid.dataset.batch([0])[0][0])
    with pytest.raises(ValueError, match='no labels'): pretrain_dls(photos, **KW, on_error='skip').test_dl(dls.valid.items, with_labels=True)
    with pytest.raises(ValueError, match='images without labels'): pretrain_dls(photos, **KW, on_error='skip').adopt(([.5]*3, [.5]*3))

def test_small_images_in_memory_keep_no_network_waiting():
    "Seconds of processor time for one pass, the best of three"
    def once(dl):
        start = time.process_time()
        for b in dl: pass
        return time.process_time() - start
    small = np.random.default_rng(0).integers(0, 256, (5000, 28, 28), dtype=np.uint8)
    pre, dls = pretrain_dls(small, size=28, valid_pct=0), finetune_dls((small[:500], np.arange(500) % 10), size=28, valid_pct=0)
    assert min(once(pre.train) for _ in range(3)) < .3 and min(once(dls.train) for _ in range(3)) < 1


class Seen(Callback):
    order = 9.4
    def before_fit(self): self.seen = {True: [], False: []}
    def before_batch(self): self.seen[self.training] += self.xb[0][:, 0, 0, 0].tolist()

def run_of(out):
    "One epoch over images that are numbered by their grey, alone or as one of two processes; what it saw"
    n, world = 51, int(os.environ.get('WORLD_SIZE', 1))
    x = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).repeat(1, 1, 4, 4)
    dls = pretrain_dls(x, size=4, bs=8//world, valid_pct=15/51, stats=([.5], [.5]), device='cpu')
    torch.manual_seed(0)
    learn = auto_learner(dls); learn.add_cb(Seen())
    with learn.no_bar(), learn.distrib_ctx(sync_bn=False): learn.fit(1, 1e-2)
    whole = sorted(o for b in dls.valid for o in dls.valid.to_detach(b[0][:, 0, 0, 0]).tolist())
    w = getattr(learn.model, 'module', learn.model).weight.flatten().tolist()
    res = dict(train=learn.seen.seen[True], valid=learn.seen.seen[False], w=w, whole=whole, loss=learn.recorder.values[-1][1],
               idxs=dls.valid.get_idxs(), items=dls.valid.dataset.items[:, 0, 0, 0].tolist())
    (out/os.environ.get('RANK', 'one')).write_text(json.dumps(res))

def test_two_processes(tmp_path):
    "Two CPU processes see disjoint halves of what one sees, step by step, and end at the same weights"
    assert code(child(lambda: run_of(tmp_path))) == 0 and [code(p) for p in ranks(lambda: run_of(tmp_path))] == [0, 0]
    one, a, b = (json.loads((tmp_path/o).read_text()) for o in ('one', '0', '1'))
    both = [i for k in range(0, len(a['train']), 4) for j in range(k, k+4) for i in (a['train'][j], b['train'][j])]
    assert not set(a['train']) & set(b['train']) and one['train'] == both
    assert np.allclose(one['w'], a['w'], atol=1e-5) and a['w'] == b['w']
    assert a['valid'] == b['valid'] == one['valid']   # what is measured, every process has in full
    assert [a['items'][i] for i in a['idxs']] == a['valid'] and [b['items'][i] for i in b['idxs']] == b['valid']
    assert a['whole'] == b['whole'] == sorted(one['valid'])
    assert abs(a['loss'] - one['loss']) < .1*one['loss'] and a['loss'] == b['loss']
