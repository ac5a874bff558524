(() => {
  // The longest and the shortest pause between two questions, in seconds.
  const longest = 300, shortest = 1;
  const given = document.currentScript.dataset;
  const html = document.documentElement;
  const notice = document.getElementById('notice');
  let shown = notice?.innerHTML, asked = Date.now(), timer;

  // Times as the visitor reads them: in their own time zone, and in their own variety of the page's language.
  const localise = () => {
    const own = navigator.languages.find(language => language.split('-')[0] === html.lang.split('-')[0]);
    const format = new Intl.DateTimeFormat(own || html.lang, {dateStyle: 'full', timeStyle: 'short'});
    for (const time of document.querySelectorAll('time')) time.textContent = format.format(new Date(time.dateTime));
  };

  const wait = seconds => {
    clearTimeout(timer);
    const pause = Math.min(Math.max(seconds || +given.retryAfter, shortest), longest);
    // Not all at the same time: up to a half later, by half a minute at most.
    timer = setTimeout(ask, (pause + Math.random() * Math.min(pause, 60) / 2) * 1000);
  };

  // The page may have been the answer to a form: nothing here ever loads it in a way that would send that again.
  const goOn = () => {
    if (given.over) document.getElementById('status').textContent = given.over;
    else if (location.hash) location.reload();
    else location.replace(location.href);
  };

  const ask = async () => {
    asked = Date.now();
    let seconds;
    try {
      const signal = AbortSignal.timeout(30000);
      const answer = await fetch('', {headers: {Accept: 'text/html'}, cache: 'no-store', redirect: 'manual', signal});
      if (answer.status < 502) return goOn();
      seconds = parseInt(answer.headers.get('Retry-After'));
      const fresh = new DOMParser().parseFromString(await answer.text(), 'text/html');
      const news = fresh.getElementById('notice');
      if (news && notice && news.innerHTML !== shown) {
        shown = news.innerHTML;
        notice.replaceChildren(...news.childNodes);
        document.title = fresh.title;
        localise();
      }
    } catch {}
    wait(seconds);
  };

  // Who comes back to the page need not wait.
  const look = () => document.visibilityState === 'visible' && timer && Date.now() - asked > 5000 && ask();
  document.addEventListener('visibilitychange', look);
  addEventListener('online', look);
  localise();
  wait((Date.parse(given.until) - Date.now()) / 1000);
})();
