"Never worse without a word: a run that spoils its encoder is warned and exports the start; a run that was stopped knows its start and its best; all processes end alike"
import json, os
import numpy as np, pytest, torch
from safetensors.torch import load_file
from gmml_nb.checkpoint import Checkpoint
from gmml_nb.data import finetune_dls, pretrain_dls
from gmml_nb.export import run_rows
from gmml_nb.recipe import RECIPES
from gmml_nb.pretrain import gmml_learner
from gmml_nb.progress import TrackFeatures, history
from gmml_nb.training import all_processes
from gmml_nb.weights import example_encoder, example_images
from callbacks import StopAt
from common import code, ranks

TINY = dict(embed_dim=16, depth=2, num_heads=2)

def images(n=40): return np.random.RandomState(0).randint(0, 256, (n, 12, 12, 3), dtype=np.uint8)

def tiny(lr=.05, **kw):
    return gmml_learner(pretrain_dls(images(), size=12, bs=8, valid_pct=.2, device='cpu', **kw), 'vit_tiny_patch16_224', patch_size=2, model_args=TINY, blocks=(1, 2), lr=lr)

def train(learn, track, folder=None, n=4, cbs=()):
    ck = folder and Checkpoint(folder, steps=1)
    with learn.no_bar(), learn.no_logging(), all_processes(learn): learn.fit_gmml(n, cbs=[track, *cbs], checkpoint=ck, estimate=False)
    return learn

def same(a, b): return all(torch.equal(p, q) for p,q in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True))


def from_the_box(lr):
    "Goes on with the encoder of the package, on squares of three photographs"
    return gmml_learner(pretrain_dls(example_images(96), size=32, bs=18, valid_pct=.25, device='cpu'), example_encoder(), 'paper', lr=lr, drop_path=0., crop=(.5, 1.))

def test_a_spoilt_run_is_warned_and_exports_its_start(tmp_path, capsys):
    "At 100 times the rate, without labels: said within two measurements"
    learn = train(from_the_box(.05), TrackFeatures(keep='best'), n=2)
    said,h = capsys.readouterr().out,history(learn)
    assert 'rank has fallen below the start' in said and h['rank'][1] < .8*h['rank'][0] and h.valid_loss[2] > 1.5*.33
    assert 'the weights from before training' in said and learn.ran['kept'] == dict(epoch=0, by='copies', value=h.copies[0])
    out = learn.export_encoder(tmp_path/'enc')
    a,b = (load_file(o/'model.safetensors') for o in (example_encoder(), out))
    assert all(torch.equal(b[k], v) for k,v in a.items()), 'the start, to the last bit'
    facts = json.loads((out/'config.json').read_text())['gmml']
    assert facts['results']['rank'] == h['rank'][0] and 'pretraining: epoch 0, the best by copies' in dict(run_rows('pretraining', facts, RECIPES))

def test_a_mild_run_is_not(capsys):
    learn = train(from_the_box(5e-4), TrackFeatures(), n=2)
    assert 'fallen' not in capsys.readouterr().out and 'kept' not in learn.ran


@pytest.mark.parametrize('by', ['valid_loss', 'rank'])
def test_a_stopped_run_knows_its_start_and_its_best(by, tmp_path, capsys):
    "Stopped in the middle of an epoch and twice more; a new learner and a new callback end with the weights, the log, the start and the best of a run that was never stopped"
    def track(): return TrackFeatures(keep='best', by=by)
    whole = train(tiny(), a := track(), tmp_path/'whole')
    capsys.readouterr()
    for step in (2, 6, 9):
        with pytest.raises(KeyboardInterrupt): train(tiny(), track(), tmp_path/'cut', cbs=[StopAt(step)])
    learn = train(tiny(), b := track(), tmp_path/'cut')
    assert capsys.readouterr().out.count('before training: ') == 1
    assert same(whole, learn) and history(whole).equals(history(learn)) and whole.ran == learn.ran
    assert (a.start, a.kept, a.results) == (b.start, b.kept, b.results) and 0 in history(learn).index
    again = train(tiny(), c := track(), tmp_path/'cut')        # finished
    assert same(again, learn) and history(again).equals(history(learn)) and again.ran == learn.ran and c.kept == b.kept
    on = train(learn, d := track(), n=1)                       # a new run, from the weights that were kept
    assert d.start['rank'] == pytest.approx(b.results['rank']) and d.new_start == (not b.kept['epoch'])
    assert list(history(on).index) == [0, 1]

def test_the_best_is_in_the_checkpoint_until_the_end(tmp_path):
    train(tiny(), TrackFeatures(keep='best', by='rank'), tmp_path/'ck')
    state, = torch.load(tmp_path/'ck/finished/rng.pt', weights_only=True)
    assert state['cbs']['track_features']['weights'] is None, 'what is in the model is not kept twice'

def test_the_rate_finder_leaves_the_best_alone(tmp_path):
    learn = tiny()
    learn.path,track = tmp_path,TrackFeatures(keep='best')
    learn.add_cb(track)
    was = {k: v.clone() for k,v in learn.model.state_dict().items()}
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=4, show_plot=False)
    assert track.start is None and all(torch.equal(v, was[k]) for k,v in learn.model.state_dict().items())

def test_two_processes_keep_the_same(tmp_path):
    def run():
        learn = train(tiny(), track := TrackFeatures(keep='best', by='rank'), tmp_path/'ck')
        torch.save((learn.model.state_dict(), track.kept, track.start), tmp_path/f'{os.environ["RANK"]}.pt')
    assert [code(p) for p in ranks(run)] == [0, 0]
    (a,kept,start),(b,*other) = (torch.load(tmp_path/f'{i}.pt', weights_only=False) for i in range(2))
    assert all(torch.equal(a[k], b[k]) for k in a) and other == [kept, start] and kept['epoch'] < 4

def test_labels_by_photograph():
    "Three photographs are three classes: neighbours and probe know them before training"
    x,y = example_images(96),np.arange(96) % 3
    lab = finetune_dls((x, y), size=32, bs=48, recipe='crop', crop_pct=1., valid_pct=.5, device='cpu')
    track = TrackFeatures(lab, k=5, probe=True)
    train(from_the_box(5e-4), track, n=1)
    assert track.start['knn'] > .8 and track.start['probe'] > .8 and not track.warned
