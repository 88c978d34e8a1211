"A model leaves and comes in: timm alone, ONNX Runtime, the hub, and other people's checkpoints"
import argparse, base64, json, os, pickle, re, struct, subprocess, sys, threading, zlib
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import numpy as np, pandas as pd, pytest, timm, torch
from fastai.vision.data import ImageDataLoaders
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from gmml_nb.convert import convert_checkpoint, read_checkpoint
from gmml_nb.data import finetune_dls, pretrain_dls
from gmml_nb.export import export_onnx, export_program, push_to_hub, write_card
from gmml_nb.finetune import finetune_learner
from gmml_nb.evaluate import features
from gmml_nb.weights import load_encoder, prepared
from gmml_nb.pretrain import gmml_learner
from gmml_nb.vit import GMMLEncoder

ARCH,TINY,DATA = 'vit_tiny_patch16_224', dict(embed_dim=24, depth=3, num_heads=2), Path(__file__).parent/'data'
AUTHORS,B = DATA/'official_tiny48_p16_64.pth', 'module.backbone.'

@pytest.fixture(scope='module')
def pre():
    "Pretrained here, on digits"
    learn = gmml_learner(pretrain_dls('digits', size=8, bs=32, idxs=range(200), device='cpu'), ARCH, patch_size=2, blocks=(2, 3), model_args=TINY)
    with learn.no_bar(), learn.no_logging(): learn.fit_gmml(1, estimate=False)
    return learn

@pytest.fixture(scope='module')
def folder(pre, tmp_path_factory): return pre.export_encoder(tmp_path_factory.mktemp('enc')/'digits-vit')

@pytest.fixture(scope='module')
def fine(folder):
    learn = finetune_learner(finetune_dls('digits', size=8, bs=32, recipe=None, labels=100, device='cpu'), folder)
    with learn.no_bar(), learn.no_logging(): learn.fit_finetune(1)
    return learn

@pytest.fixture(scope='module')
def classifier(fine, tmp_path_factory): return fine.export_classifier(tmp_path_factory.mktemp('cls')/'digits-cls', hours=.1)

def images(n=5, c=1, side=8): return torch.randn(n, c, side, side, generator=torch.Generator().manual_seed(1))

@lru_cache
def ckpt(): return read_checkpoint(AUTHORS)

def vit_of(learn): return learn.model.cpu().eval().encoder.vit

# Out ----------------------------------------------------------------------------------------------------------------

TIMM_ALONE = '''
import sys
sys.modules['gmml_nb'] = sys.modules['fastai'] = None
import numpy as np, timm, torch
m,x = timm.create_model(sys.argv[1], pretrained=True).eval(),torch.tensor(np.load(sys.argv[2]))
with torch.no_grad(): np.savez(sys.argv[3], tokens=m.forward_features(x), out=m(x))
'''

def by_timm_alone(name, x, tmp, **env):
    np.save(tmp/'x.npy', x.numpy())
    subprocess.run([sys.executable, '-W', 'ignore', '-c', TIMM_ALONE, name, str(tmp/'x.npy'), str(tmp/'y.npz')], check=True,
                   env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': '', **env})
    with np.load(tmp/'y.npz') as z: return {k: torch.tensor(z[k]) for k in z}

def test_an_encoder_in_a_program_that_imports_timm_only(pre, folder, tmp_path):
    x = images()
    with torch.no_grad(): want = vit_of(pre).forward_features(x)
    got = by_timm_alone(f'local-dir:{folder}', x, tmp_path)
    assert torch.equal(got['tokens'], want) and torch.allclose(got['out'], want[:, 1:].mean(1), atol=1e-6)   # the patches' mean, no class token

def test_a_classifier_in_a_program_that_imports_timm_only(fine, classifier, tmp_path):
    x = images()
    with torch.no_grad(): want = fine.model.cpu().eval()(x)
    assert torch.equal(by_timm_alone(f'local-dir:{classifier}', x, tmp_path)['out'], want)
    o = timm.create_model(f'local-dir:{classifier}').pretrained_cfg
    assert list(o['label_names']) == [str(i) for i in range(10)] and o['num_classes'] == 10
    assert np.allclose(o['mean'], fine.dls.stats[0], atol=1e-5) and np.allclose(o['std'], fine.dls.stats[1], atol=1e-5)

def test_a_tensor_that_is_missing_is_not_overlooked(folder, tmp_path):
    state = load_file(folder/'model.safetensors')
    (tmp_path/'config.json').write_text((folder/'config.json').read_text())
    save_file({k: v for k,v in state.items() if k != 'norm.bias'}, tmp_path/'model.safetensors')
    with pytest.raises(RuntimeError, match='norm.bias'): timm.create_model(f'local-dir:{tmp_path}', pretrained=True)

def test_what_ran_survives_validation(fine, classifier, tmp_path):
    before = json.loads((classifier/'config.json').read_text())
    with fine.no_bar(): fine.validate(), fine.get_preds()
    assert json.loads((fine.export_classifier(tmp_path/'o', hours=.1)/'config.json').read_text()) == before
    assert before['finetune']['epochs'] == 1 and set(before['finetune']['results']) == {'train_loss', 'valid_loss', 'accuracy'}

def test_fastai_loaders(tmp_path):
    "Their normalisation is that of a transform"
    for i in range(12): Image.fromarray(np.random.RandomState(i).randint(0, 255, (16, 16, 3), dtype=np.uint8)).save(tmp_path/f'{"ab"[i%2]}{i}.png')
    from fastai.vision.all import Normalize, imagenet_stats
    from gmml_nb.weights import image_stats
    kw = dict(bs=4, device='cpu', seed=0, valid_pct=.4)
    dls = ImageDataLoaders.from_name_func(tmp_path, sorted(tmp_path.glob('*.png')), lambda o: o[0], batch_tfms=Normalize.from_stats(*imagenet_stats), **kw)
    learn = finetune_learner(dls, None, arch=ARCH, model_args=dict(TINY, patch_size=4))
    o = json.loads((learn.export_classifier(tmp_path/'o')/'config.json').read_text())
    assert o['label_names'] == ['a', 'b'] and np.allclose(o['pretrained_cfg']['mean'], imagenet_stats[0]) and 'gmml' not in o
    assert o['finetune']['epochs'] == 0 and o['finetune']['results'] == {}
    bare = ImageDataLoaders.from_name_func(tmp_path, sorted(tmp_path.glob('*.png')), lambda o: o[0], **kw)
    assert [o.tolist() for o in image_stats(bare)] == [[0.]*3, [1.]*3]

def test_every_way_to_name_a_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(folder.parent))
    for o in (f'~/{folder.name}', f'local-dir:{folder}', f'{folder}/'):
        assert write_card(o) == folder/'README.md' and push_to_hub(o, 'me/digits', dry_run=True) == 'hf-hub:me/digits' and export_program(o, tmp_path/'o.pt2').exists()
    with pytest.raises(ValueError, match='no such folder here'): write_card(folder.parent/'digits-vut')

def test_cards(folder, classifier):
    for o in (folder, classifier):
        card = ModelCard.load(write_card(o, data='digits', license='mit'))
        cfg = json.loads((o/'config.json').read_text())
        assert card.data.license == 'mit' and '| licence of the data | unknown |' in card.text and '| data | digits |' in card.text
        assert f"local-dir:{o.name}'" in card.text and str(o.parent) not in card.text
        assert f"pretraining: images | {cfg['gmml']['images']}" in card.text and 'pretraining: epochs | 1' in card.text
    assert 'fine-tuning: hours | 0.1' in card.text and card.data.eval_results[0].metric_value == round(cfg['finetune']['results']['accuracy'], 4)

def test_one_vector_everywhere(pre, folder):
    "timm's output, `features` and `load_encoder` agree; fine-tuning still reads the class token; transformers stops at a second num_classes"
    f,_ = features(folder, pre.dls.valid)
    mean,std = prepared(folder)['stats']
    x = (pre.dls.valid.dataset.batch(range(len(f)))[0].as_subclass(torch.Tensor).float()/255 - torch.tensor(mean).view(-1, 1, 1))/torch.tensor(std).view(-1, 1, 1)
    with torch.no_grad():
        assert torch.allclose(timm.create_model(f'local-dir:{folder}', pretrained=True).eval()(x), f, atol=1e-6)
        assert torch.allclose(load_encoder(folder).eval()(x), f, atol=1e-6)
    cfg = json.loads((folder/'config.json').read_text())
    assert cfg['global_pool'] == 'avg' and 'num_classes' not in cfg['model_args'] and cfg['num_classes'] == 0
    assert load_encoder(folder, 2).global_pool == 'token' and 'output | one vector: the mean of the patches' in write_card(folder).read_text()

# A file, and what is made of it -------------------------------------------------------------------------------------

def picture(i, side=(40, 60)):
    y,x = np.mgrid[0:side[0], 0:side[1]]
    return np.stack([4*x + i, 3*y, (x*y + 17*i) % 256], -1).clip(0, 255).astype(np.uint8)

def turned(): o = Image.Exif(); o[274] = 6; return o
def alpha(im, v): im = im.copy(); im.putalpha(Image.fromarray(np.broadcast_to(np.uint8(v), im.size[::-1]))); return im
GREY = picture(2)[..., 0].astype(np.uint16)
RGB = Image.fromarray(picture(1))
FILES = {'plain.png': (RGB, {}), 'wide.jpg': (Image.fromarray(picture(3, (33, 97))), {}), 'phone.jpg': (RGB, dict(exif=turned())), 'logo.png': (alpha(RGB, np.arange(60)*4), {}),
    'clear.gif': (RGB.quantize(8), dict(transparency=3)), 'palette.png': (RGB.quantize(16), {}), 'deep.png': (Image.fromarray(GREY*100), {}), 'dark.tif': (Image.fromarray(GREY), {}),
    'turned.tif': (Image.fromarray(GREY*7), dict(tiffinfo={274: 6})), 'white.tif': (Image.fromarray(GREY*9), dict(tiffinfo={262: 0})), 'float.tif': (Image.fromarray(GREY.astype(np.float32)/300), {}),
    'int.tif': (Image.fromarray(GREY.astype(np.int32)*1000), {}), 'grey.jpg': (RGB.convert('L'), {}), 'print.jpg': (RGB.convert('CMYK'), {}), 'fax.png': (RGB.convert('1'), {}),
    'grey_clear.png': (alpha(RGB.convert('L'), 128), {}), 'infrared.tif': (alpha(RGB, np.arange(60) + 90), {}), 'other.webp': (RGB, dict(lossless=True))}

def colour_16(path, a):
    "A PNG of 16 bits a channel, which Pillow cannot write"
    part = lambda k, b: struct.pack('>I', len(b)) + k + b + struct.pack('>I', zlib.crc32(k + b))
    rows = b''.join(b'\0' + o.astype('>u2').tobytes() for o in a)
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + part(b'IHDR', struct.pack('>IIBBBBB', a.shape[1], a.shape[0], 16, {3: 2, 4: 6}[a.shape[2]], 0, 0, 0)) + part(b'IDAT', zlib.compress(rows)) + part(b'IEND', b''))

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    d = tmp_path_factory.mktemp('files')
    for k,(im,kw) in FILES.items(): im.save(d/k, **kw)
    a = picture(5).astype(np.uint16)*99
    colour_16(d/'colour.png', a), colour_16(d/'colour_clear.png', np.concatenate([a, a[..., :1]*2], -1))
    (d/'grey.pgm').write_bytes(b'P5 60 40 65535\n' + (GREY*80).astype('>u2').tobytes())
    Image.fromarray((GREY.astype(np.uint32)*16_000_000).view(np.int32)).save(d/'unsigned.tif', tiffinfo={339: 1})
    Image.fromarray(GREY*50).save(d/'none.tif', tiffinfo={42113: '0'})
    f = GREY.astype(np.float32)/300
    f[3, 4:9],f[5, 5] = np.inf,-np.inf
    Image.fromarray(f).save(d/'inf.tif')
    Image.fromarray(GREY*100).save(d/'clear16.png', transparency=0)
    return sorted(d.iterdir())

@pytest.mark.parametrize('kw', [dict(resize='crop', crop_pct=.875), dict(resize='squish', in_chans=1), dict(resize='pad', depth={'16-bit': [0, 30000], 'float': [0, 1.]})], ids=lambda o: o['resize'])
def test_a_file_means_the_same_to_the_learner_and_to_the_cards_program(kw, files, tmp_path):
    for i in range(8):
        (tmp_path/'im'/'ab'[i%2]).mkdir(exist_ok=True, parents=True)
        Image.fromarray(picture(i)).save(tmp_path/'im'/'ab'[i%2]/f'{i}.png')
    learn = finetune_learner(finetune_dls(tmp_path/'im', size=(16, 24), bs=4, recipe=None, device='cpu', **kw), None, arch=ARCH, model_args=dict(TINY, patch_size=8), lr=.05)
    with learn.no_bar(), learn.no_logging(): learn.fit_finetune(1)
    folder = learn.export_classifier(tmp_path/'c')
    text = re.search(r'```python\n(.*?)```', write_card(folder).read_text(), re.S)[1].replace('local-dir:c', f'local-dir:{folder}')
    for f in files:
        names = {}
        exec(text.replace('photo.png', str(f)), names)
        x,y = names['x'],names['y']
        ours = learn.dls.test_dl([f]).one_batch()[0].as_subclass(torch.Tensor)
        assert (x - ours).abs().max() < 1e-5, f.name
        with learn.no_bar(): name,_,p = learn.predict(f)
        with torch.no_grad(): assert torch.allclose(names['model'](x).softmax(1)[0], p.as_subclass(torch.Tensor), atol=1e-5) and [name] == y, f.name

@pytest.mark.parametrize('c', [2, 6])
def test_the_cards_program_of_other_channels(c, tmp_path, monkeypatch):
    x = np.random.RandomState(0).randint(0, 255, (16, c, 8, 12), dtype=np.uint8).astype(np.float32)/255
    learn = finetune_learner(finetune_dls((x, ['a', 'b']*8), size=(8, 12), bs=4, recipe=None, device='cpu'), None, arch=ARCH, model_args=dict(TINY, patch_size=4))
    folder = learn.export_classifier(tmp_path/'c')
    monkeypatch.chdir(tmp_path), np.save('image.npy', x[3])
    text,names = re.search(r'```python\n(.*?)```', write_card(folder).read_text(), re.S)[1],{}
    assert f'{c} channels is an array (C, H, W)' in text
    exec(text, names)
    assert (names['x'] - learn.dls.test_dl(x[3:4]).one_batch()[0].as_subclass(torch.Tensor)).abs().max() < 1e-5

# Without Python -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('what', ['encoder', 'classifier', 'fused map'])
def test_onnx_and_torch_export(what, pre, folder, classifier, tmp_path):
    ort = pytest.importorskip('onnxruntime')
    source = dict(encoder=folder, classifier=classifier).get(what, pre.model.encoder)
    model = pre.model.encoder.cpu().eval() if what == 'fused map' else timm.create_model(f'local-dir:{source}', pretrained=True).eval()
    net = ort.InferenceSession(export_onnx(source, tmp_path/'o.onnx'), providers=['CPUExecutionProvider'])
    program = torch.export.load(export_program(source, tmp_path/'o.pt2')).module()
    for n in (1, 3, 16):
        with torch.no_grad(): want = model(x := images(n))
        assert np.abs(net.run(None, dict(images=x.numpy()))[0] - want.numpy()).max() < 1e-4
        assert (program(x) - want).abs().max() < 1e-4
    facts = {k: json.loads(v) for k,v in net.get_modelmeta().custom_metadata_map.items()}
    if what == 'classifier': assert facts['label_names'] == [str(i) for i in range(10)] and len(facts['mean']) == 1 and facts['crop_pct'] == 1
    assert sorted(os.listdir(tmp_path)) == ['o.onnx', 'o.pt2']

def test_onnx_is_not_there(monkeypatch, folder, tmp_path):
    monkeypatch.setattr('gmml_nb.export.find_spec', lambda o: None)
    with pytest.raises(ImportError, match='pip install onnx onnxscript onnxruntime'): export_onnx(folder, tmp_path/'o.onnx')
    assert not list(tmp_path.iterdir())

# To the hub and back ------------------------------------------------------------------------------------------------

class Hub(BaseHTTPRequestHandler):
    "As much of a hub as a push and a load need, in memory"
    files,sha,asked = {},'a'*40,[]
    def log_message(self, *args): pass
    def answer(self, body=b'', code=200, **headers):
        self.send_response(code)
        body = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
        for k,v in {'Content-Length': len(body), **{k.replace('_', '-'): v for k,v in headers.items()}}.items(): self.send_header(k, str(v))
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(body)
    def body(self):
        if 'chunked' not in self.headers.get('Transfer-Encoding', ''): return self.rfile.read(int(self.headers.get('Content-Length', 0)))
        o = b''
        while n := int(self.rfile.readline(), 16): o += self.rfile.read(n); self.rfile.readline()
        self.rfile.readline()
        return o
    def do_POST(self):
        data,path = self.body(),self.path.split('?')[0]
        self.asked.append(path)
        if path == '/api/repos/create': return self.answer(dict(url=f'http://{self.headers["Host"]}/me/digits', id='me/digits'))
        if path.endswith('/preupload/main'):
            return self.answer(dict(files=[dict(path=f['path'], uploadMode='regular', shouldIgnore=False) for f in json.loads(data)['files']]))
        if path.endswith('/commit/main'):
            for o in map(json.loads, data.splitlines()):
                if o['key'] == 'file': self.files[o['value']['path']] = base64.b64decode(o['value']['content'])
            return self.answer(dict(commitUrl=f'http://{self.headers["Host"]}/me/digits/commit/{self.sha}', commitOid=self.sha, hookOutput=''))
        self.answer({}, 200)
    def do_GET(self):
        name = self.path.split('?')[0].split('/')[-1]
        if '/resolve/' in self.path and name in self.files:
            return self.answer(self.files[name], ETag=f'"{name}-1"', X_Repo_Commit=self.sha)
        if '/api/models/me/digits' in self.path:
            return self.answer(dict(id='me/digits', sha=self.sha, siblings=[dict(rfilename=o) for o in self.files], private=True, tags=[], downloads=0, likes=0))
        self.answer(b'', 404, X_Error_Code='EntryNotFound')
    do_HEAD = do_GET

@pytest.fixture
def hub():
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    Hub.files.clear(), Hub.asked.clear()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown(), server.server_close()

def test_pushed_and_loaded_from_a_hub(monkeypatch, hub, fine, tmp_path):
    "The whole way, by huggingface_hub's own calls, to a server in this process"
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)   # `make test` allows no downloads
    out,x = fine.export_classifier(tmp_path/'digits'),images()
    (out/'secret.txt').write_text('no')
    assert push_to_hub(out, 'me/digits', api=HfApi(endpoint=hub, token='hf_none')) == 'hf-hub:me/digits'
    assert set(Hub.files) == {'README.md', 'config.json', 'model.safetensors'}
    assert b"hf-hub:me/digits'" in Hub.files['README.md'] and Hub.files['model.safetensors'] == (out/'model.safetensors').read_bytes()
    got = by_timm_alone('hf-hub:me/digits', x, tmp_path, HF_HUB_OFFLINE='0', HF_ENDPOINT=hub, HF_HOME=str(tmp_path/'home'))
    with torch.no_grad(): assert torch.equal(got['out'], fine.model.cpu().eval()(x))

def test_a_dry_run_asks_nobody(monkeypatch, folder, tmp_path, capsys):
    def no(*args, **kw): raise AssertionError('asked')
    monkeypatch.setattr(HfApi, 'create_repo', no), monkeypatch.setattr(HfApi, 'upload_folder', no)
    before = {f.name: f.stat().st_mtime for f in folder.iterdir()}
    push_to_hub(folder, 'me/digits', dry_run=True)
    said = capsys.readouterr().out
    assert 'model.safetensors' in said and 'MB' in said and before == {f.name: f.stat().st_mtime for f in folder.iterdir()}

# In -----------------------------------------------------------------------------------------------------------------

def test_the_authors_checkpoint(tmp_path):
    rep = convert_checkpoint(AUTHORS, tmp_path/'o')
    with np.load(DATA/'official_tiny48_p16_64_io.npz') as z: io = {k: torch.tensor(z[k]) for k in z}
    enc = GMMLEncoder(f'local-dir:{tmp_path/"o"}', (6, 8, 10, 12), pretrained=True).eval()
    with torch.no_grad(): fused,last = enc(io['x']).flatten(2).mT,enc.vit.forward_features(io['x'])
    assert (fused - io['fused']).abs().max() < 1e-4 and (last - io['last_features']).abs().max() < 1e-4
    got = by_timm_alone(f'local-dir:{tmp_path/"o"}', io['x'], tmp_path)
    assert (got['tokens'] - io['last_features']).abs().max() < 1e-4
    assert sorted(rep.entry) == sorted([f'SiT_model/{k}' for k in ckpt()['SiT_model']] + ['optimizer', 'epoch', 'args'])   # each entry once
    assert rep.fate.value_counts().to_dict() == dict(loaded=150, decoder=8, dropped=3) and (rep.note != '').all()
    assert 'epoch | 801' in write_card(tmp_path/'o').read_text().replace('epochs', 'epoch')

@pytest.mark.parametrize('key', [k.removeprefix(B) for k in list(ckpt()['SiT_model']) if k.startswith(B)][::7]
                         + ['cls_token', 'pos_embed', 'patch_embed.proj.weight', 'norm.weight', 'blocks.11.norm1.weight'])
def test_one_renamed_key_is_named(key, tmp_path):
    new = key[:-2] + 'X' + key[-2:]
    sd = {B + new if k == B + key else k: v for k,v in ckpt()['SiT_model'].items()}
    torch.save(dict(ckpt(), SiT_model=sd), tmp_path/'o.pth')
    with pytest.raises(ValueError) as e: convert_checkpoint(tmp_path/'o.pth', tmp_path/'out')
    assert repr(B + key) in str(e.value) and B + new in str(e.value)
    assert not (tmp_path/'out').exists()

@pytest.mark.parametrize('name,kind', [('state_dict', {}), ('module.', dict(reg_tokens=2)), ('module.encoder.', dict(init_values=.1, in_chans=2)),
    ('_orig_mod.', dict(class_token=False, global_pool='avg')), ('backbone.', dict(qkv_bias=False, mlp_ratio=2)), ('', dict(class_token=False, global_pool='avg', fc_norm=False))])
def test_prefixes_and_kinds_of_timm(name, kind, tmp_path):
    "Weights under another prefix, of many kinds of transformer, give the same features"
    m = timm.create_model('vit_small_patch16_224', img_size=32, depth=2, num_classes=3, **kind).eval()
    state = m.state_dict()
    torch.save(dict(state_dict=state) if name == 'state_dict' else {name + k: v for k,v in state.items()}, tmp_path/'o.pth')
    x = images(2, kind.get('in_chans', 3), 32)
    rep = convert_checkpoint(tmp_path/'o.pth', tmp_path/'o', stats=([.5]*x.shape[1], [.5]*x.shape[1]))
    o = timm.create_model(f'local-dir:{tmp_path/"o"}', pretrained=True).eval()
    with torch.no_grad(): assert torch.equal(o(x), m.forward_head(m.forward_features(x), pre_logits=True))
    assert (rep.fate == 'head').sum() == 2 and len(rep) == len(state)

def test_mae_and_distilled(tmp_path):
    m = timm.create_model('vit_small_patch16_224', img_size=32, depth=2, num_classes=0).state_dict()
    more = {k: torch.zeros(2, 2) for k in ('mask_token', 'decoder_embed.weight', 'decoder_pos_embed', 'decoder_blocks.0.norm1.weight', 'decoder_pred.bias')}
    torch.save(dict(model={**m, **more}), tmp_path/'mae.pth')
    assert convert_checkpoint(tmp_path/'mae.pth', tmp_path/'mae').fate.value_counts().to_dict() == dict(loaded=len(m), decoder=4, dropped=1)
    arch = 'deit_small_distilled_patch16_224'
    d = timm.create_model(arch, img_size=32, depth=2, num_classes=0).state_dict()
    torch.save(d, tmp_path/'d.pth')
    with pytest.raises(ValueError, match="'dist_token' has no place.*arch="): convert_checkpoint(tmp_path/'d.pth', tmp_path/'d')
    convert_checkpoint(tmp_path/'d.pth', tmp_path/'d', arch=arch)
    assert torch.equal(timm.create_model(f'local-dir:{tmp_path/"d"}', pretrained=True).dist_token, d['dist_token'])

def test_converted_weights_are_fine_tuned(tmp_path):
    convert_checkpoint(AUTHORS, tmp_path/'o')
    m = load_encoder(tmp_path/'o', n_classes=4, img_size=32)
    assert m.head.out_features == 4 and torch.equal(m.cls_token, ckpt()['SiT_model'][f'{B}cls_token'])

def test_what_shapes_cannot_say(tmp_path):
    m = timm.create_model('vit_small_patch16_224', img_size=(32, 48), depth=2, embed_dim=50, num_heads=5, num_classes=0).state_dict()
    torch.save(m, tmp_path/'o.pth')
    def convert(**kw): return convert_checkpoint(tmp_path/'o.pth', tmp_path/'o', **kw)
    with pytest.raises(ValueError, match='50 wide.*num_heads'): convert()
    with pytest.raises(ValueError, match='timm cannot make'): convert(arch='vit_small_patch16_224')
    with pytest.raises(ValueError, match="'pos_embed' is .1, 7, 50. there and .1, 197, 50."): convert(arch='vit_small_patch16_224', model_args=dict(num_heads=5))
    convert(arch='vit_small_patch16_224', model_args=dict(num_heads=5, img_size=(32, 48)))
    assert timm.create_model(f'local-dir:{tmp_path/"o"}', pretrained=True).blocks[0].attn.num_heads == 5

class Bomb:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.system, (f'touch {self.path}',)

@pytest.mark.parametrize('how', ['zip', 'legacy', 'plain'])
def test_a_harmful_checkpoint_is_refused_by_name(how, tmp_path):
    o,f = dict(ckpt(), args=argparse.Namespace(model='vit_tiny', hook=Bomb(tmp_path/'boom'))),tmp_path/'o.pth'
    if how == 'plain': f.write_bytes(pickle.dumps(dict(args=Bomb(tmp_path/'boom')), protocol=2))
    else: torch.save(o, f, _use_new_zipfile_serialization=how == 'zip')
    with pytest.raises(ValueError, match=re.escape(f'{f} was not read: it holds {os.system.__module__}.system')): convert_checkpoint(f, tmp_path/'out')
    assert not (tmp_path/'boom').exists() and not (tmp_path/'out').exists()

@pytest.mark.parametrize('content', [b'', b'not a checkpoint', b'PK\3\4' + bytes(100)])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_no_checkpoint_at_all(content, suffix, tmp_path):
    f = tmp_path/f'o{suffix}'
    f.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(f))): convert_checkpoint(f, tmp_path/'out')
    torch.save([1, 2], tmp_path/'list.pth')
    with pytest.raises(ValueError, match='holds a list'): convert_checkpoint(tmp_path/'list.pth', tmp_path/'out')
    with pytest.raises(ValueError, match='there is no file'): convert_checkpoint(tmp_path/'none.pth', tmp_path/'out')
