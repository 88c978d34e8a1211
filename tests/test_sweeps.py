"Sweeps: killed and restarted, several processes, and every dataset's real format from `get_dataset` to a result line"
import json, os, signal, socket, sys, time
from dataclasses import fields, replace
from pathlib import Path
import numpy as np, pandas as pd, pytest, timm
from PIL import Image
from fastai.callback.core import Callback
from filelock import LeaseCompromise
from scipy.io import savemat
from gmml_nb import ablations
from gmml_nb.experiment import Experiment, _lines, change, difference, read_results, summary, verdict
from gmml_nb.ablations import BASES, SWEEPS, Sweep
from gmml_nb.cli import gmml_sweep
from gmml_nb.datasets import DATASETS
from common import ROOT, child, code, ranks

TINY = dict(model_args=dict(embed_dim=24, depth=2, num_heads=2, weight_init='jax'), blocks=(1, 2))
CHANGE = "images=300 epochs=12 finetune_epochs=4 labels=50 blocks=1,2 model_args={'embed_dim':24,'depth':2,'num_heads':2}"


def sweep(folder, change=CHANGE, which='methods', **kw):
    "A function that runs a sweep as the command does, and keeps what it says"
    def run():
        with (folder/'said.txt').open('a') as sys.stdout:
            gmml_sweep(which, seeds=1, change=change, out=str(folder/'runs'), results=str(folder/'r.jsonl'), **kw)
    return run

def lines(file):
    "What does not depend on the clock and the number of threads"
    clock = 'seconds_pretraining', 'seconds_finetuning', 'date', 'machine', 'commit'
    rows = [json.loads(l) for l in Path(file).read_text().splitlines()]
    return sorted([{k: v for k,v in r.items() if k not in clock} for r in rows], key=lambda r: r['id'])

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A sweep that was never killed"
    d = tmp_path_factory.mktemp('whole')
    assert code(child(sweep(d))) == 0
    return lines(d/'r.jsonl')


def test_killed_in_the_middle_of_a_run(whole, tmp_path):
    "SIGKILL in a pretraining, and again in the next run: the same lines as of a sweep that was never killed"
    def kill(ready):
        pid,end = child(sweep(tmp_path)),time.time() + 120
        while not ready() and time.time() < end: time.sleep(.005)
        os.kill(pid, signal.SIGKILL)
        assert code(pid) == -signal.SIGKILL, 'it ended before it could be killed'
    kill(lambda: list(tmp_path.glob('runs/*/checkpoint/epoch_*')))
    assert not (tmp_path/'r.jsonl').exists(), 'killed too late: a run had finished'
    kill(lambda: (tmp_path/'r.jsonl').exists() and len(list(tmp_path.glob('runs/*/checkpoint/epoch_*'))))
    done = len(lines(tmp_path/'r.jsonl'))
    assert 0 < done < 6
    with (tmp_path/'r.jsonl').open('a') as f: f.write('{"id": "torn')     # as a machine that stops leaves it
    (tmp_path/'said.txt').write_text('')
    assert code(child(sweep(tmp_path))) == 0 and 'going on from' in (tmp_path/'said.txt').read_text()   # and not from the start
    (tmp_path/'r.jsonl').write_text(''.join(l + '\n' for l in (tmp_path/'r.jsonl').read_text().splitlines() if not l.endswith('torn')))
    assert lines(tmp_path/'r.jsonl') == whole


def test_jobs_side_by_side(whole, tmp_path):
    assert code(child(sweep(tmp_path, jobs=2))) == 0
    assert lines(tmp_path/'r.jsonl') == whole


def lines_of(folder): return [json.loads(l) for l in (folder/'r.jsonl').read_text().splitlines()]

def test_two_parts_do_every_run_once(whole, tmp_path, monkeypatch):
    "Started at the same moment on one results file; each run has one line, and both parts have run some"
    monkeypatch.setattr(ablations, 'CLAIM', 5.)
    assert [code(p) for p in [child(sweep(tmp_path, share=f'{i}/2')) for i in range(2)]] == [0, 0]
    assert lines(tmp_path/'r.jsonl') == whole and len(lines_of(tmp_path)) == len(whole)
    assert not list(tmp_path.rglob('*.claim'))

@pytest.mark.parametrize('host', ['this', 'node7'])
def test_a_killed_part_is_taken_over(host, whole, tmp_path, monkeypatch):
    "SIGKILL in a pretraining of part 0. Part 1 goes on from its checkpoint: at once where it sees that the process is gone, from another host when its claim has expired"
    monkeypatch.setattr(ablations, 'CLAIM', 5.)
    run = sweep(tmp_path, which='loss', share='0/2')
    def part():
        if host != 'this': socket.gethostname = lambda: host
        run()
    pid,end = child(part),time.time() + 120
    while not list(tmp_path.glob('runs/*/checkpoint/epoch_*')) and time.time() < end: time.sleep(.005)
    os.kill(pid, signal.SIGKILL)
    assert code(pid) == -signal.SIGKILL and not (tmp_path/'r.jsonl').exists()
    claim, = tmp_path.glob('runs/*.claim')
    assert f'pid={pid}\n' in claim.read_text() and (host == 'this' or f'host={host}' in claim.read_text())
    assert code(child(sweep(tmp_path, which='loss', share='1/2'))) == 0
    rows,said = lines_of(tmp_path),(tmp_path/'said.txt').read_text()
    assert len(rows) == len({r['id'] for r in rows}) == 2 and 'going on from' in said
    l1, = [r['value'] for r in rows if r['recipe']['loss'] == 'l1']
    assert [l1] == [r['value'] for r in whole if r['experiment']['method'] == 'gmml']   # as of a run that was never killed
    if host != 'this': assert claim.stem == Experiment(**rows[-1]['experiment']).pretraining_id, 'a claim that may be alive is left for the end'
    assert not list(tmp_path.rglob('*.claim'))

def test_a_part_that_is_asked_to_end_frees_its_claim(tmp_path):
    "SIGTERM, as from a scheduler: saved, 143, and nobody has to wait"
    run = sweep(tmp_path, which='loss', share='0/2')
    def part():
        try: run()
        except SystemExit as e: os._exit(e.code)
    pid,end = child(part),time.time() + 120
    while not list(tmp_path.glob('runs/*/checkpoint/epoch_*')) and time.time() < end: time.sleep(.005)
    os.kill(pid, signal.SIGTERM)
    assert code(pid) == 143 and not list(tmp_path.rglob('*.claim')) and list(tmp_path.glob('runs/*/checkpoint/epoch_*'))

def test_a_part_taken_for_dead_stops(tmp_path):
    "The claim passes to another process while the run goes on"
    s = Sweep([dict(method='gmml')], change(BASES['digits'], images=40, labels=20, epochs=50, finetune_epochs=1, **TINY), seeds=1, results=tmp_path/'r.jsonl', work=tmp_path/'runs')
    class Lease: compromise = None
    class Steal(Callback):
        looks_on = True
        def after_batch(self): Lease.compromise = LeaseCompromise(lock_file='a.claim', token='', reason='owner-changed')
    failed = ablations.run_group(s.todo, s.results, s.work, cbs=Steal(), lease=Lease())
    assert 'a.claim is of another process now' in failed[0] and len(s.todo) == 1

def test_parts_that_do_not_exist():
    assert [''.join(ablations.own_part(f'{i}/3')('abcdefg')) for i in range(3)] == ['adgbcef', 'beacdfg', 'cfabdeg']
    for o in ('3/3', '1', '-1/3', '0/0', 'a/b', '', 3):
        with pytest.raises(ValueError, match='I from 0 to N-1'): ablations.own_part(o)

def test_step_times_are_taken_once(tmp_path, monkeypatch):
    "Parts that start together compare equal seconds by the same times"
    monkeypatch.setattr(Experiment, 'probe', lambda self, root=None: time.sleep(.05) or time.time())
    def run(i): (tmp_path/f'{i}.json').write_text(json.dumps(ablations.step_seconds(BASES['digits'], tmp_path/'speed.jsonl', turns=1)))
    assert [code(p) for p in [child(lambda: run(i)) for i in range(2)]] == [0, 0]
    assert (tmp_path/'0.json').read_text() == (tmp_path/'1.json').read_text()


def test_every_base_has_every_sweep(tmp_path):
    n = [{k: len(Sweep(k, b, seeds=1, results=tmp_path/'r.jsonl').todo) for k in SWEEPS} for b in ('flowers', 'fashion_mnist')]
    assert n[0] == n[1] | dict(labels=6, choices=9)   # a hundredth of Flowers' images is less than a label for each class; of the two, Flowers alone is augmented as by DeiT


def test_launched_on_two_processes(tmp_path):
    "Each run trains on both processes, and its line is written once"
    assert [code(p) for p in ranks(sweep(tmp_path, CHANGE.replace('epochs=12', 'epochs=2')))] == [0, 0]
    df = read_results(tmp_path/'r.jsonl')
    assert sorted(df.method) == sorted(o['experiment']['method'] for o in lines(tmp_path/'r.jsonl')) and len(df) == 6
    gmml = df[df.method == 'gmml'].iloc[0]
    assert gmml.images_pretraining == 2*(300//64)*64      # two times 32 images in a step


def picture(path, i):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 24, 3)).astype(np.uint8)).save(path)

def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(rows) + '\n')

N = 8, 4   # training and test images, two classes in turn

def flowers(d):
    n = sum(N)
    for i in range(n): picture(d/f'flowers-102/jpg/image_{i+1:05d}.jpg', i)
    savemat(d/'flowers-102/imagelabels.mat', dict(labels=np.arange(n)[None] % 2 + 1))
    ids = np.arange(n)[None] + 1
    savemat(d/'flowers-102/setid.mat', dict(trnid=ids[:, :6], valid=ids[:, 6:N[0]], tstid=ids[:, N[0]:]))

def pets(d):
    for s,n in zip(('trainval', 'test'), N):
        rows = [(f'{("Abyssinian", "great_pyrenees")[i%2]}_{s}{i}', i%2 + 1) for i in range(n)]
        write(d/f'oxford-iiit-pet/annotations/{s}.txt', *[f'{f} {c} 1 1' for f,c in rows])
        for i,(f,_) in enumerate(rows): picture(d/f'oxford-iiit-pet/images/{f}.jpg', i)

def cub(d):
    names = '001.Black_footed_Albatross', '002.Laysan_Albatross'
    files = [f'{names[i%2]}/{i}.jpg' for i in range(sum(N))]
    d = d/'CUB_200_2011'
    for i,f in enumerate(files): picture(d/'images'/f, i)
    write(d/'images.txt', *[f'{i+1} {f}' for i,f in enumerate(files)])
    write(d/'image_class_labels.txt', *[f'{i+1} {i%2+1}' for i in range(sum(N))])
    write(d/'train_test_split.txt', *[f'{i+1} {int(i < N[0])}' for i in range(sum(N))])
    write(d/'classes.txt', *[f'{i+1} {o}' for i,o in enumerate(names)])

def aircraft(d):
    d,names = d/'fgvc-aircraft-2013b/data',('A300B4', 'Cessna 172')
    write(d/'variants.txt', *names)
    for s,lo,n in (('trainval', 0, N[0]), ('test', N[0], N[1])):
        write(d/f'images_variant_{s}.txt', *[f'{lo+i:07d} {names[i%2]}' for i in range(n)])
        for i in range(n): picture(d/f'images/{lo+i:07d}.jpg', i)

def cars(d):
    d = d/'stanford_cars'
    for s,n,f in (('train', N[0], 'devkit/cars_train_annos.mat'), ('test', N[1], 'cars_test_annos_withlabels.mat')):
        a = np.zeros((1, n), dtype=[(k, object) for k in ('bbox_x1', 'bbox_y1', 'bbox_x2', 'bbox_y2', 'class', 'fname')])
        for i in range(n):
            a[0, i] = (1, 1, 9, 9, i%2 + 1, f'{i+1:05d}.jpg')
            picture(d/f'cars_{s}/{i+1:05d}.jpg', i)
        (d/'devkit').mkdir(exist_ok=True)
        savemat(d/f, dict(annotations=a))
    savemat(d/'devkit/cars_meta.mat', dict(class_names=np.array(['Acura RL Sedan 2012', 'Hummer SUV 2000'], dtype=object)[None]))

def imagenet(d):
    for s,n in zip(('train', 'val'), N):
        for i in range(n): picture(d/s/('n01440764', 'n01443537')[i%2]/f'{s}_{i}.JPEG', i)

@pytest.mark.parametrize('name, write', [(f.__name__, f) for f in (flowers, pets, cub, aircraft, cars, imagenet)])
def test_real_formats(name, write, tmp_path, monkeypatch):
    "A miniature in the data set's own format, from `get_dataset` through pretraining to a result line"
    write(tmp_path/'data')
    monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], n_classes=2, n_train=N[0], n_test=N[1], tol=0))
    base = change(BASES['imagenet_5pct' if name == 'imagenet' else name], arch='vit_tiny_patch16_224', data=name, size=16, patch_size=8, epochs=1, bs=4,
                  finetune_epochs=1, finetune_bs=4, **TINY)
    s = Sweep([dict(method='gmml')], base, seeds=1, results=tmp_path/'r.jsonl', work=tmp_path/'runs', root=tmp_path/'data')
    row = s.run().iloc[0]
    assert (row.data, row.images_pretraining, row.images_tested) == (name, N[0], N[1]) and 0 <= row.value <= 1


def test_weights_of_timm(tmp_path, monkeypatch):
    "The row of timm's weights; the weights are random ones here, since there is no network in a test"
    plain = timm.create_model
    asked = []
    def create(*args, pretrained=False, **kw):
        asked.append(pretrained)
        return plain(*args, **kw)
    monkeypatch.setattr('timm.create_model', create)
    flowers(tmp_path/'data')
    monkeypatch.setitem(DATASETS, 'flowers', replace(DATASETS['flowers'], n_classes=2, n_train=N[0], n_test=N[1], tol=0))
    base = change(BASES['flowers'], arch='vit_tiny_patch16_224', size=32, finetune_epochs=1, finetune_bs=4, method='timm')
    row = base.run(tmp_path/'runs', tmp_path/'data')
    assert True in asked and row['images_pretraining'] == 0 and row['images_tested'] == N[1]


@pytest.mark.parametrize('sweep, n', [('labels', 6), ('equal_seconds', 5)])
def test_sweeps_that_count_images_take_a_folder(sweep, n, tmp_path):
    "Of photographs in class folders, which have no size in a table"
    for i in range(50): picture(tmp_path/f'photos/{"ab"[i%2]}/{i}.png', i)
    base = change(BASES['digits'], data='photos', labels=None, size=16, patch_size=8, epochs=1, bs=4, finetune_epochs=1, finetune_bs=4, **TINY)
    s = Sweep(sweep, base, seeds=1, results=tmp_path/'r.jsonl', work=tmp_path/'runs', root=tmp_path)
    assert len(s.runs) == n and base.counts(tmp_path) == (40, 2)
    if sweep == 'labels': assert sorted({e.labels for e in s.todo}) == [2, 8, 40]
    assert all(sum(e.sizes(tmp_path)[:2]) for e in s.todo)


def test_finished_pretraining_costs_nothing(tmp_path):
    "Another number of labels on an encoder that is there"
    base = change(BASES['digits'], images=40, labels=20, epochs=2, finetune_epochs=1, **TINY)
    place = dict(seeds=1, results=tmp_path/'r.jsonl', work=tmp_path/'runs')
    Sweep([dict(labels=20)], base, **place).run(estimate=False)
    e, = Sweep([dict(labels=40)], base, **place).todo
    assert e.sizes()[0] > 0 and e.sizes(work=tmp_path/'runs')[0] == 0
    assert Sweep([dict(labels=40)], base, **place).cost().steps.tolist() == [4]


SMALL = change(BASES['digits'], images=100, labels=20, spare=.2, epochs=2, bs=16, finetune_epochs=1, **TINY)
PAIR = [dict(method=m) for m in ('gmml', 'random')]

def test_draws_share_a_pretraining_in_two_parts(tmp_path, monkeypatch):
    "Started at the same moment; each pretraining begins once, and each draw has its line"
    monkeypatch.setattr(ablations, 'CLAIM', 5.)
    plain = Experiment.learner
    def learner(self, dls):
        with (tmp_path/'begun.txt').open('a') as f: f.write(f'{self.pretraining_id}\n')
        return plain(self, dls)
    monkeypatch.setattr(Experiment, 'learner', learner)
    s = Sweep(PAIR, SMALL, 2, tmp_path/'r.jsonl', tmp_path/'runs', draws=3)
    assert [code(p) for p in [child(lambda i=i: s.run(estimate=False, share=f'{i}/2')) for i in range(2)]] == [0, 0]
    begun,t = (tmp_path/'begun.txt').read_text().split(),s.table()
    assert len(begun) == len(set(begun)) == 2 == len(list(tmp_path.glob('runs/*/encoder')))
    assert len(t) == len(lines_of(tmp_path)) == 12 and not s.todo and not list(tmp_path.rglob('*.claim'))
    assert t[['seed', 'draw', 'method']].values.tolist() == [[i, d, m] for i in (0, 1) for d in (0, 1, 2) for m in ('gmml', 'random')]
    assert verdict(t).endswith('over 2 pretrainings of 3 draws each') and set(summary(t).draws) == {'3'}
    assert t.groupby(['method', 'seed']).images_pretraining.nunique().eq(1).all()
    more = Sweep(PAIR, SMALL, 2, tmp_path/'r.jsonl', tmp_path/'runs', draws=4)
    assert [(e.seed, e.draw) for e in more.todo] == [(0, 3)]*2 + [(1, 3)]*2 and set(more.cost().steps) == {2}   # 20 labels in steps of 10

def test_a_draw_is_of_labels_alone():
    "The same held-out images and images to pretrain on in every draw, the same labelled ones for every method, and seeds that share no draw"
    items = lambda dl: [str(o.tolist()) for o in dl.dataset.items]
    made = {(m, s, d): change(SMALL, method=m, seed=s, draw=d).loaders() for m in ('gmml', 'random') for s in (0, 1) for d in (0, 1, None)}
    for s in (0, 1):
        pre,held = ({str(items(o)) for k,(a,b) in made.items() if k[1] == s for o in (f(a, b),)} for f in (lambda a, b: a.train, lambda a, b: b.valid))
        assert len(pre) == len(held) == 1
    labelled = {k: items(fine.train) for k,(_,fine) in made.items()}
    assert all(labelled['gmml', *k] == labelled['random', *k] for _,*k in made)
    assert len({str(sorted(v)) for (*_,d),v in labelled.items() if d is not None}) == 4 and all(len(v) == 20 for v in labelled.values())
    assert all(set(v) <= set(items(made[k][0].train)) for k,v in labelled.items())

def test_the_draw_is_no_part_of_older_names():
    e = SMALL
    assert e.draw is None and 'draw' not in e.unusual() and replace(e, draw=0).old_name() is None and e.finetune_seed == e.seed
    assert replace(e, draw=3).pretraining_id == e.pretraining_id and replace(e, draw=3).folder('runs') == e.folder('runs')
    for d in (-1, 1000, True, '1'):
        with pytest.raises(ValueError, match='draw=.*a whole number from 0 to 999'): replace(e, draw=d).check()

def test_intervals_over_draws():
    "By hand: Student's t with one degree of freedom is 12.706, with two 4.303"
    rows = lambda **kw: pd.DataFrame([dict(method=m, seed=s, draw=d, value=v, images_pretraining=0, images_finetuning=9, seconds=1)
                                      for m,vs in kw.items() for (s,d),v in vs.items()])
    one = rows(gmml={(0, 0): .7, (0, 1): .8, (0, 2): .9}, random={(0, 0): .6, (0, 1): .6, (0, 2): .6, (0, 3): .1})
    assert np.allclose(difference(one, 'gmml', 'random'), (20, 4.303*10/3**.5, 3), atol=.01)   # draw 3 has no partner
    assert verdict(one).endswith('+20.0 ± 24.8 points over 3 draws of labels, one pretraining') and set(summary(one).seeds) == {1}
    own = one.assign(draw=None, seed=one.draw)
    assert verdict(own).endswith('+20.0 ± 24.8 points over 3 seeds') and 'draws' not in summary(own)
    assert verdict(own.drop(columns='draw')) == verdict(own) and summary(own.drop(columns='draw')).equals(summary(own))
    both = pd.concat([one, one.assign(seed=1, value=one.value - .1*(one.method == 'gmml'))])
    assert np.allclose(difference(both, 'gmml', 'random'), (15, 12.706*5, 2), atol=.01) and verdict(both).endswith('over 2 pretrainings of 3 draws each')
    assert verdict(both.replace('gmml', 'random_long'), 'random_long').endswith('over 2 seeds of 3 draws each')
    assert np.allclose(summary(both).loc['GMML', ['accuracy', '± 95 %']].astype(float), (75, 63.5), atol=.1)
    with pytest.raises(ValueError, match='several runs'): verdict(pd.concat([one, one]))
    assert 'no verdict' in verdict(one[one.draw == 0])


NEW = 'digits_kept', 'cifar10_few', 'cifar10_few_tuning', 'going_on',   # of runs that were named by what is not at its default
PUBLISHED = [f for f in sorted((ROOT/'results').glob('*.jsonl')) if not f.stem.endswith('speed') and f.stem not in ('benchmark', 'foretold')]
LEFT = json.loads((ROOT/'tests/data/published_sweeps.json').read_text())   # {file: {sweep: runs without a line}}, when names were made of all fields

@pytest.mark.parametrize('file', PUBLISHED, ids=lambda f: f.stem)
def test_published_lines_keep_their_names(file):
    "Each line is found by the experiment that it describes, under its old name or its new one"
    rows = list(_lines(file))
    runs = [Experiment(**r['experiment']) for r in rows]
    assert rows and all(r['id'] in e.names and (e.id == r['id']) == (file.stem in NEW) for r,e in zip(rows, runs))
    assert len({e.id for e in runs}) == len({r['id'] for r in rows})
    for e in runs: assert replace(e, finetune={k: v for k,v in e.finetune.items() if k != 'crop_pct'}).id != e.id   # it was not what the recipe does now

@pytest.mark.parametrize('base', LEFT)
def test_published_sweeps_find_their_lines(base):
    for k,(n,left) in LEFT[base].items():
        s = Sweep(k, base, range(5), ROOT/f'results/{base}.jsonl')
        assert (len(s.runs), len(s.todo), len(s.table())) == (n, left, n - left), k

def test_a_line_of_a_part_is_refused(tmp_path, monkeypatch):
    "An accuracy of fewer images than the split has is not written down"
    from fastai.learner import Learner
    plain = Learner.get_preds
    monkeypatch.setattr(Learner, 'get_preds', lambda self, *a, **k: tuple(o[:180] for o in plain(self, *a, **k)))
    e = change(BASES['digits'], method='random', finetune_epochs=1, labels=10, images=20, **{k: v for k,v in TINY.items() if k != 'blocks'})
    with pytest.raises(ValueError, match='180 images were measured, and the split has 360'): e.run(tmp_path)
