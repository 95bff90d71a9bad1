import { join } from 'node:path';

export const REPO = join(__dirname, '..', '..');
export const FIXTURES = join(__dirname, '..', 'fixtures');
export const MODEL = join(FIXTURES, 'tinymoe-17m-q8_0.gguf');
/** Of another shape: more and narrower experts, no shared one. */
export const SECOND_MODEL = join(FIXTURES, 'tinyolmoe-22m-q8_0.gguf');
export const WIKITEXT = join(FIXTURES, 'wikitext.txt');
