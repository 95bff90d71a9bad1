import { createHash, generateKeyPairSync, randomBytes } from 'node:crypto';
import { parsePublicKey, publicKeyOf, SignatureError, signDigest, verifyDigest } from './minisign';

const newKey = (): string => generateKeyPairSync('ed25519').privateKey.export({ type: 'pkcs8', format: 'pem' }).toString();
const digestOf = (text: string): Buffer => createHash('blake2b512').update(text).digest();

describe('minisign signatures', () => {
  const pem = newKey();
  const key = publicKeyOf(pem);
  const signature = signDigest(digestOf('content'), pem, 'moefleet-agent 0.1.0 linux-x64');

  it('verifies what it has signed and returns the trusted comment', () => {
    expect(verifyDigest(digestOf('content'), signature, key)).toBe('moefleet-agent 0.1.0 linux-x64');
  });

  it('verifies a file that minisign has signed', () => {
    // minisign 0.11: `minisign -G -W`, `minisign -S -m file -t "by minisign"`; the file held "hello moefleet\n".
    const theirs = parsePublicKey('untrusted comment: minisign public key\nRWSUg78BValmv/x5RtYy9/Tgjc69SBvZpH9xngdIrkVbqOKV/qxS2Jzt\n');
    expect(verifyDigest(digestOf('hello moefleet\n'), [
      'untrusted comment: signature from minisign secret key',
      'RUSUg78BValmv7e09n2ShzhOT7yhansFwpuWr23cyHEs11nzgQiS9S2pGe92dPSSumnrSLKsv9s1fKnV6PcqjhX0vYgKioAFTA4=',
      'trusted comment: by minisign',
      'pSItEmN5byL8wOOXH/m6RAuBm1PdAGLoAGQkJPF17A+2g94wq9+s3eKUGddzGYjyVTKH8hCSngQ7kIHa8xQgDA==',
    ].join('\n'), theirs)).toBe('by minisign');
  });

  it('refuses other content, another key, another comment and anything that is no signature', () => {
    expect(() => verifyDigest(digestOf('other'), signature, key)).toThrow('does not match its signature');
    expect(() => verifyDigest(digestOf('content'), signature, publicKeyOf(newKey()))).toThrow(`signed by key ${key.keyId}, expected`);
    expect(() => verifyDigest(digestOf('content'), signature.replace('0.1.0', '0.9.0'), key)).toThrow('the trusted comment does not match');
    expect(() => verifyDigest(digestOf('content'), '', key)).toThrow(SignatureError);
    expect(() => verifyDigest(digestOf('content'), randomBytes(5000).toString('latin1'), key)).toThrow(SignatureError);
  });

  it('refuses a signature with any one character of its base64 changed', () => {
    const lines = signature.split('\n');
    for (const line of [1, 3]) {
      for (let at = 0; at < lines[line]!.length; at += 7) {
        const changed = [...lines];
        changed[line] = `${lines[line]!.slice(0, at)}${lines[line]![at] === 'A' ? 'B' : 'A'}${lines[line]!.slice(at + 1)}`;
        expect(() => verifyDigest(digestOf('content'), changed.join('\n'), key)).toThrow(SignatureError);
      }
    }
  });

  it('refuses keys that are none, and private keys of another kind', () => {
    expect(() => parsePublicKey('RWxyz')).toThrow('is no public key');
    expect(() => publicKeyOf('')).toThrow('no private key in PEM');
    expect(() => publicKeyOf(generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey.export({ type: 'pkcs8', format: 'pem' }).toString())).toThrow('of type ec');
  });
});
