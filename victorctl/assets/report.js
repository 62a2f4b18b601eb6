// Filters the answers, and copies commands; without it the page shows everything.
const form = document.getElementById("filter");
if (form) {
  const cards = [...document.querySelectorAll(".card")];
  const texts = (card) => [...card.querySelectorAll("[dir]")].map((one) => one.textContent);
  const words = cards.map((card) => texts(card).join("\n").toLowerCase());
  const show = () => {
    const { who, group, text } = Object.fromEntries(new FormData(form));
    const wanted = text.trim().toLowerCase();
    cards.forEach((card, place) => {
      card.hidden =
        (who && card.dataset.who !== who) ||
        (group && card.dataset.group !== group) ||
        !words[place].includes(wanted);
    });
    const left = cards.filter((card) => !card.hidden).length;
    form.querySelector("output").value = `${left} of ${cards.length} shown`;
  };
  form.addEventListener("input", show);
  form.addEventListener("reset", () => setTimeout(show));
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("pageshow", show); // a browser may fill the form in again
  form.hidden = false;
}
for (const block of navigator.clipboard ? document.querySelectorAll("pre") : []) {
  const button = document.createElement("button");
  const say = (text) => (button.textContent = text);
  button.addEventListener("click", () =>
    navigator.clipboard.writeText(block.textContent).then(
      () => say("Copied"),
      () => say("Select and copy it by hand"),
    ),
  );
  button.type = "button";
  button.className = "copy";
  say("Copy");
  block.after(button);
}
